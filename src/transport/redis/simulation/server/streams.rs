//! The commands on streams, with the responses of Redis 7.

use super::{
    data::{Answer, Args, Data, entry, number, text},
    reply::Reply,
    stream::{Group, Id},
};

impl Data {
    pub(super) fn run_stream_command(&mut self, name: &[u8], args: Args) -> Answer {
        match name {
            b"XADD" => self.add(args),
            b"XDEL" => {
                let Some(stream) = self.stream_mut(&args[0]) else {
                    return Ok(Reply::Int(0));
                };
                let ids = args[1..].iter().filter_map(|id| Id::parse(id));
                Ok(Reply::count(
                    ids.filter(|id| stream.entries.remove(id).is_some()).count(),
                ))
            }
            b"XLEN" => Ok(Reply::count(
                self.stream_mut(&args[0])
                    .map_or(0, |stream| stream.entries.len()),
            )),
            b"XRANGE" => self.range(args),
            b"XTRIM" => self.trim(args),
            b"XACK" => {
                let Ok(group) = self.group(&args[0], &args[1]) else {
                    return Ok(Reply::Int(0));
                };
                let ids = args[2..].iter().filter_map(|id| Id::parse(id));
                Ok(Reply::count(
                    ids.filter(|id| group.pending.remove(id).is_some()).count(),
                ))
            }
            b"XPENDING" if args.len() == 2 => self.summary(&args[0], &args[1]),
            b"XPENDING" => self.pending(args),
            b"XCLAIM" => self.claim(args),
            b"XGROUP" => self.manage(args),
            b"XINFO" => self.info(args),
            _ => Err(format!("ERR unknown command '{}'", text(name))),
        }
    }

    pub(super) fn group(&mut self, key: &[u8], group: &[u8]) -> Result<&mut Group, String> {
        self.stream_mut(key)
            .and_then(|stream| stream.groups.get_mut(group))
            .ok_or_else(|| {
                format!(
                    "NOGROUP No such key '{}' or consumer group '{}'",
                    text(key),
                    text(group)
                )
            })
    }

    fn add(&mut self, args: Args) -> Answer {
        let key = &args[0];
        let create = args[1] != b"NOMKSTREAM";
        if !create && self.stream_mut(key).is_none() {
            self.reply_dropped = true;
            return Ok(Reply::Nil);
        }
        // `NOMKSTREAM`, a limit that this model ignores, and the id.
        let id = args.iter().position(|arg| arg == b"*");
        let fields = &args[id.ok_or("ERR Invalid stream ID")? + 1..];
        let now = self.now;
        self.written.insert(key.clone());
        let id = self.make_stream(key).add(now, fields.to_vec());
        Ok(Reply::bulk(id.to_string()))
    }

    fn range(&mut self, args: Args) -> Answer {
        let ends = Id::bound(&args[1]).zip(Id::bound(&args[2]));
        let (from, to) = ends.ok_or("ERR Invalid stream ID")?;
        let count = args.get(4).map_or(Ok(usize::MAX), |count| number(count))?;
        let found = self
            .stream_mut(&args[0])
            .into_iter()
            .flat_map(|stream| stream.entries.range((from, to)));
        Ok(Reply::List(
            found
                .take(count)
                .map(|(id, fields)| entry(*id, fields))
                .collect(),
        ))
    }

    fn trim(&mut self, args: Args) -> Answer {
        let Some(stream) = self.stream_mut(&args[0]) else {
            return Ok(Reply::Int(0));
        };
        let limit = args.last().expect("a limit");
        Ok(Reply::count(match &args[1][..] {
            b"MAXLEN" => stream.trim_to(number(limit)?),
            _ => {
                let min_id = Id::parse(limit).ok_or("ERR Invalid stream ID")?;
                stream.trim_before(min_id, args[2] != b"~")
            }
        }))
    }

    fn summary(&mut self, key: &[u8], group: &[u8]) -> Answer {
        let pending = &self.group(key, group)?.pending;
        let id = |found: Option<&Id>| found.map_or(Reply::Nil, |id| Reply::bulk(id.to_string()));
        let (first, last) = (id(pending.keys().next()), id(pending.keys().next_back()));
        Ok(Reply::List(vec![
            Reply::count(pending.len()),
            first,
            last,
            Reply::Nil,
        ]))
    }

    fn pending(&mut self, args: Args) -> Answer {
        let ends = Id::bound(&args[2]).zip(Id::bound(&args[3]));
        let (from, to) = ends.ok_or("ERR Invalid stream ID")?;
        let (count, consumer): (usize, _) = (number(&args[4])?, args.get(5));
        let now = self.now;
        let group = self.group(&args[0], &args[1])?;
        let found = (group.pending.range((from, to)))
            .filter(|(_, pending)| consumer.is_none_or(|consumer| *consumer == pending.consumer));
        let list = found.take(count).map(|(id, pending)| {
            Reply::List(vec![
                Reply::bulk(id.to_string()),
                Reply::bulk(&pending.consumer[..]),
                Reply::Int(now.saturating_sub(pending.last_delivered_at) as i64),
                Reply::Int(pending.deliveries),
            ])
        });
        Ok(Reply::List(list.collect()))
    }

    /// `XCLAIM key group consumer min-idle id… [RETRYCOUNT n | JUSTID]`.
    fn claim(&mut self, args: Args) -> Answer {
        let (now, min_idle) = (self.now, number::<u64>(&args[3])?);
        self.group(&args[0], &args[1])?;
        let stream = self.stream_mut(&args[0]).expect("it has a group");
        let group = stream.groups.get_mut(&args[1]).expect("looked up above");
        group.consumers.insert(args[2].clone(), now);
        let retries = args.iter().position(|arg| arg == b"RETRYCOUNT");
        let just_id = args.iter().position(|arg| arg == b"JUSTID");
        let count = retries.map(|at| number(&args[at + 1])).transpose()?;
        let mut claimed = Vec::new();
        for text in &args[4..retries.or(just_id).unwrap_or(args.len())] {
            let id = Id::parse(text).ok_or("ERR Invalid stream ID")?;
            let Some(pending) = group
                .pending
                .get_mut(&id)
                .filter(|p| min_idle == 0 || now.saturating_sub(p.last_delivered_at) >= min_idle)
            else {
                continue;
            };
            let Some(fields) = stream.entries.get(&id) else {
                group.pending.remove(&id);
                continue;
            };
            pending.consumer.clone_from(&args[2]);
            pending.last_delivered_at = now;
            pending.deliveries = count.unwrap_or(pending.deliveries + i64::from(just_id.is_none()));
            claimed.push(match just_id {
                Some(_) => Reply::bulk(&text[..]),
                None => entry(id, fields),
            });
        }
        Ok(Reply::List(claimed))
    }

    fn manage(&mut self, args: Args) -> Answer {
        let [what, key, name, rest @ ..] = args else {
            return Err("ERR syntax error".to_owned());
        };
        if what == b"CREATE" {
            let stream = self.make_stream(key);
            let last = match &rest[0][..] {
                b"$" => stream.last_id,
                start => Id::parse(start).ok_or("ERR Invalid stream ID")?,
            };
            if stream.groups.contains_key(name) {
                return Err("BUSYGROUP Consumer Group name already exists".to_owned());
            }
            stream.groups.insert(
                name.clone(),
                Group {
                    last_delivered_id: last,
                    ..Group::default()
                },
            );
            return Ok(Reply::Status("OK"));
        }
        // DELCONSUMER
        let group = self.group(key, name)?;
        group.consumers.remove(&rest[0]);
        let before = group.pending.len();
        group
            .pending
            .retain(|_, pending| pending.consumer != rest[0]);
        Ok(Reply::count(before - group.pending.len()))
    }

    fn info(&mut self, args: Args) -> Answer {
        let now = self.now;
        if args[0] == b"GROUPS" {
            let stream = self.stream_mut(&args[1]).ok_or("ERR no such key")?;
            let groups = stream.groups.iter().map(|(name, group)| {
                let facts = [
                    ("name", Reply::bulk(&name[..])),
                    ("pending", Reply::count(group.pending.len())),
                    (
                        "last-delivered-id",
                        Reply::bulk(group.last_delivered_id.to_string()),
                    ),
                ];
                list(facts)
            });
            return Ok(Reply::List(groups.collect()));
        }
        if args[0] == b"STREAM" {
            let stream = self.stream_mut(&args[1]).ok_or("ERR no such key")?;
            return Ok(list([(
                "last-generated-id",
                Reply::bulk(stream.last_id.to_string()),
            )]));
        }
        // CONSUMERS
        let group = self.group(&args[1], &args[2])?;
        let consumers = group.consumers.iter().map(|(name, seen)| {
            let pending = group
                .pending
                .values()
                .filter(|pending| pending.consumer == *name);
            list([
                ("name", Reply::bulk(&name[..])),
                ("pending", Reply::count(pending.count())),
                ("idle", Reply::Int(now.saturating_sub(*seen) as i64)),
            ])
        });
        Ok(Reply::List(consumers.collect()))
    }
}

fn list<const N: usize>(facts: [(&str, Reply); N]) -> Reply {
    let facts = facts
        .into_iter()
        .flat_map(|(name, fact)| [Reply::bulk(name), fact]);
    Reply::List(facts.collect())
}
