//! The server's side of RESP2 and RESP3. <https://redis.io/docs/latest/develop/reference/protocol-spec/>

/// A response of the server.
#[derive(Debug, Clone, PartialEq)]
pub(in super::super) enum Reply {
    Nil,
    Status(&'static str),
    Int(i64),
    Bulk(Vec<u8>),
    List(Vec<Reply>),
    /// Keys and values. A list of pairs in RESP2.
    Map(Vec<(Reply, Reply)>),
    /// A message that answers no command. Only in RESP3.
    Push(Vec<Reply>),
    Error(String),
}

impl Reply {
    pub(super) fn bulk(bytes: impl Into<Vec<u8>>) -> Self {
        Self::Bulk(bytes.into())
    }

    pub(super) fn count(count: usize) -> Self {
        Self::Int(count as i64)
    }

    pub(in super::super) fn encode(&self, resp3: bool, out: &mut Vec<u8>) {
        let mut head = |kind: char, len: usize| out.extend(format!("{kind}{len}\r\n").bytes());
        match self {
            Reply::Nil if resp3 => out.extend_from_slice(b"_\r\n"),
            Reply::Nil => out.extend_from_slice(b"$-1\r\n"),
            Reply::Status(status) => out.extend_from_slice(format!("+{status}\r\n").as_bytes()),
            Reply::Int(number) => out.extend_from_slice(format!(":{number}\r\n").as_bytes()),
            Reply::Error(error) => out.extend_from_slice(format!("-{error}\r\n").as_bytes()),
            Reply::Bulk(bytes) => {
                out.extend_from_slice(format!("${}\r\n", bytes.len()).as_bytes());
                out.extend_from_slice(bytes);
                out.extend_from_slice(b"\r\n");
            }
            Reply::List(list) => {
                head('*', list.len());
                list.iter().for_each(|item| item.encode(resp3, out));
            }
            Reply::Push(list) => {
                head('>', list.len());
                list.iter().for_each(|item| item.encode(resp3, out));
            }
            Reply::Map(pairs) => {
                head(if resp3 { '%' } else { '*' }, pairs.len());
                for (key, value) in pairs {
                    if !resp3 {
                        out.extend_from_slice(b"*2\r\n");
                    }
                    key.encode(resp3, out);
                    value.encode(resp3, out);
                }
            }
        }
    }
}

/// Takes the first complete command out of the bytes that a client has sent.
pub(in super::super) fn take_command(buffer: &mut Vec<u8>) -> Option<Vec<Vec<u8>>> {
    let mut at = 0;
    let mut command = Vec::new();
    for _ in 0..parse_length(buffer, &mut at)? {
        let length = parse_length(buffer, &mut at)?;
        command.push(buffer.get(at..at + length)?.to_vec());
        at += length + 2;
    }
    (at <= buffer.len()).then(|| {
        buffer.drain(..at);
        command
    })
}

/// Returns the number in a line such as `*3` or `$12`.
fn parse_length(buffer: &[u8], at: &mut usize) -> Option<usize> {
    let rest = buffer.get(*at + 1..)?;
    let end = rest.windows(2).position(|pair| pair == b"\r\n")?;
    *at += end + 3;
    std::str::from_utf8(&rest[..end]).ok()?.parse().ok()
}
