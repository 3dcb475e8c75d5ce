//! Encodes commands.
//!
//! <https://redis.io/docs/latest/develop/reference/protocol-spec/#sending-commands-to-a-redis-server>

use redis::{Arg, Cmd};

/// A command that can be encoded in RESP.
pub(in crate::transport::redis) trait Encode {
    /// Appends the encoded command.
    fn encode(&self, out: &mut Vec<u8>);

    /// Returns the approximate number of bytes that [`encode`](Self::encode) appends.
    fn size_hint(&self) -> usize;
}

/// The maximum number of bytes that encoding adds to an argument.
const OVERHEAD: usize = 24;

impl Encode for Cmd {
    fn encode(&self, out: &mut Vec<u8>) {
        self.write_packed_command(out);
    }

    fn size_hint(&self) -> usize {
        let sizes = self.args_iter().map(|arg| match arg {
            Arg::Simple(arg) => arg.len() + OVERHEAD,
            _ => OVERHEAD,
        });
        sizes.sum()
    }
}

/// An encoded command.
impl Encode for [u8] {
    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self);
    }

    fn size_hint(&self) -> usize {
        self.len()
    }
}

impl Encode for Vec<u8> {
    fn encode(&self, out: &mut Vec<u8>) {
        self[..].encode(out);
    }

    fn size_hint(&self) -> usize {
        self.len()
    }
}

impl<P: Encode + ?Sized> Encode for &P {
    fn encode(&self, out: &mut Vec<u8>) {
        P::encode(self, out);
    }

    fn size_hint(&self) -> usize {
        P::size_hint(self)
    }
}

/// A list of encoded commands in one buffer.
#[derive(Default)]
pub(in crate::transport::redis) struct Commands {
    encoded: Vec<u8>,
    /// The end of each command in the buffer.
    ends: Vec<usize>,
}

impl Commands {
    pub(in crate::transport::redis) fn push(&mut self, command: impl Encode) {
        // Removes the part of a command that an `encode` has left if it panicked.
        self.encoded.truncate(self.bytes());
        self.encoded.reserve(command.size_hint());
        command.encode(&mut self.encoded);
        self.ends.push(self.encoded.len());
    }

    pub(in crate::transport::redis) fn len(&self) -> usize {
        self.ends.len()
    }

    pub(in crate::transport::redis) fn bytes(&self) -> usize {
        self.ends.last().copied().unwrap_or(0)
    }

    /// Returns the allocated capacity in bytes.
    pub(in crate::transport::redis) fn capacity(&self) -> usize {
        self.encoded.capacity()
    }

    pub(in crate::transport::redis) fn get(&self, number: usize) -> &[u8] {
        let start = match number {
            0 => 0,
            number => self.ends[number - 1],
        };
        &self.encoded[start..self.ends[number]]
    }

    pub(in crate::transport::redis) fn iter(&self) -> impl Iterator<Item = &[u8]> {
        (0..self.len()).map(|number| self.get(number))
    }

    pub(in crate::transport::redis) fn clear(&mut self) {
        self.encoded.clear();
        self.ends.clear();
    }
}

/// Writes one command, argument by argument.
pub(in crate::transport::redis) struct RespWriter<'a> {
    out: &'a mut Vec<u8>,
    start: usize,
    args: usize,
}

impl<'a> RespWriter<'a> {
    pub(in crate::transport::redis) fn new(out: &'a mut Vec<u8>) -> Self {
        let start = out.len();
        // `finish` replaces the `0` by the number of arguments. The placeholder has one digit,
        // since few commands have more than nine arguments.
        out.extend_from_slice(b"*0\r\n");
        Self {
            out,
            start,
            args: 0,
        }
    }

    pub(in crate::transport::redis) fn arg(&mut self, arg: impl AsRef<[u8]>) -> &mut Self {
        self.args += 1;
        append_argument(self.out, arg.as_ref());
        self
    }

    /// Completes the command: writes the number of its arguments.
    pub(in crate::transport::redis) fn finish(&mut self) {
        let mut digits = itoa::Buffer::new();
        let digits = digits.format(self.args).bytes();
        let place = self.start + 1;
        self.out.splice(place..=place, digits);
    }
}

/// Appends an encoded argument.
pub(in crate::transport::redis) fn append_argument(out: &mut Vec<u8>, arg: &[u8]) {
    let mut length = itoa::Buffer::new();
    out.push(b'$');
    out.extend_from_slice(length.format(arg.len()).as_bytes());
    out.extend_from_slice(b"\r\n");
    out.extend_from_slice(arg);
    out.extend_from_slice(b"\r\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A command that redis-rs encodes.
    fn cmd(args: &[&str]) -> Cmd {
        let mut cmd = Cmd::new();
        cmd.arg(args);
        cmd
    }

    struct Args<'a>(&'a [&'a str]);

    impl Encode for Args<'_> {
        fn encode(&self, out: &mut Vec<u8>) {
            let mut writer = RespWriter::new(out);
            for arg in self.0 {
                writer.arg(arg);
            }
            writer.finish();
        }

        fn size_hint(&self) -> usize {
            0
        }
    }

    #[test]
    fn a_command_is_encoded_as_redis_rs_does_it() {
        let long = "x".repeat(1000);
        for args in [
            &["PING"][..],
            &["ECHO", ""],
            &["a\r\nb"; 9],
            &[long.as_str(); 10],
            &["y"; 123],
        ] {
            let mut out = b"before".to_vec();
            Args(args).encode(&mut out);
            assert_eq!(
                out,
                [b"before", &cmd(args).get_packed_command()[..]].concat()
            );
        }
    }

    #[test]
    fn commands_come_out_as_they_were_pushed() {
        let mut commands = Commands::default();
        for _ in 0..2 {
            commands.push(Args(&["ECHO", "1"]));
            commands.push(cmd(&["PING"]));
            assert_eq!(commands.get(1), cmd(&["PING"]).get_packed_command());
            assert_eq!(
                commands.iter().collect::<Vec<_>>().concat().len(),
                commands.bytes()
            );
            commands.clear();
            assert_eq!((commands.len(), commands.bytes()), (0, 0));
        }
    }

    #[test]
    fn a_panic_in_an_encoder_leaves_no_command_behind() {
        struct Panics;
        impl Encode for Panics {
            fn encode(&self, out: &mut Vec<u8>) {
                out.extend_from_slice(b"*2\r\n");
                panic!("half-way");
            }

            fn size_hint(&self) -> usize {
                0
            }
        }
        let mut commands = Commands::default();
        commands.push(cmd(&["PING"]));
        let push = std::panic::AssertUnwindSafe(|| commands.push(Panics));
        std::panic::catch_unwind(push).unwrap_err();
        commands.push(cmd(&["TIME"]));
        let encoded: Vec<_> = commands.iter().map(<[u8]>::to_vec).collect();
        assert_eq!(
            encoded,
            ["PING", "TIME"].map(|it| cmd(&[it]).get_packed_command())
        );
    }
}
