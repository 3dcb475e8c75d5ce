//! The keyspace, and the commands that Campanile uses on it.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    read::Read,
    reply::Reply,
    stream::{Fields, Group, Id, Stream},
};

/// The value of a key.
#[derive(Debug, Clone)]
pub(in super::super) enum Item {
    Text(Vec<u8>),
    Stream(Stream),
    /// Members with their scores.
    Sorted(BTreeMap<Vec<u8>, f64>),
    Hash(BTreeMap<Vec<u8>, Vec<u8>>),
}

/// The keyspace.
#[derive(Debug, Default)]
pub(in super::super) struct Data {
    /// The server's clock, in milliseconds since 1970.
    pub(in super::super) now: u64,
    pub(in super::super) keys: BTreeMap<Vec<u8>, Item>,
    /// The time at which each key with a lifetime expires.
    expiries: BTreeMap<Vec<u8>, u64>,
    /// Set when a command may have changed the location of a job.
    pub(in super::super) changed: bool,
    /// The streams that were written since the last call of `Server::take_notices`.
    pub(super) written: BTreeSet<Vec<u8>>,
    /// Set when a reply could not be stored, because the client's stream of replies is missing.
    pub(in super::super) reply_dropped: bool,
    /// The number of entries that were delivered to consumers since the simulation last reset it.
    pub(in super::super) entries_read: usize,
    /// The streams whose new entries cannot be read, each with the end of that fault on the
    /// simulation's clock.
    pub(in super::super) unreadable: BTreeMap<Vec<u8>, u64>,
    /// The streams from which the next read of new entries is refused.
    pub(in super::super) refuses_next_read: BTreeSet<Vec<u8>>,
}

/// The keyspace of a replica that receives no more writes.
pub(super) struct Replica {
    keys: BTreeMap<Vec<u8>, Item>,
    expiries: BTreeMap<Vec<u8>, u64>,
}

/// The commands that may change the location of a job.
const MOVING_COMMANDS: [&[u8]; 10] = [
    b"XADD", b"XDEL", b"XACK", b"XCLAIM", b"XTRIM", b"ZADD", b"ZREM", b"HSET", b"HDEL", b"XGROUP",
];

pub(super) type Args<'a> = &'a [Vec<u8>];
pub(super) type Answer = Result<Reply, String>;

impl Data {
    /// Runs a command. The error is the text that Redis responds with.
    pub(super) fn call(&mut self, args: Args) -> Answer {
        let now = self.now;
        while let Some((key, _)) = self.expiries.iter().find(|(_, at)| **at <= now) {
            let key = key.clone();
            self.remove(&key);
        }
        let name = args[0].to_ascii_uppercase();
        self.changed |= MOVING_COMMANDS.contains(&&name[..]);
        match (&name[..], &args[1..]) {
            (b"TIME", []) => Ok(Reply::List(vec![
                Reply::bulk((now / 1000).to_string()),
                Reply::bulk((now % 1000 * 1000).to_string()),
            ])),
            (b"PUBLISH", [_, _]) => Ok(Reply::Int(0)),
            // A script never blocks.
            (b"XREADGROUP", read) => self.read(&Read::parse(read)),
            (b"TYPE", [key]) => Ok(Reply::Status(match self.keys.get(key) {
                None => "none",
                Some(Item::Text(_)) => "string",
                Some(Item::Stream(_)) => "stream",
                Some(Item::Sorted(_)) => "zset",
                Some(Item::Hash(_)) => "hash",
            })),
            (b"EXISTS", [key]) => Ok(Reply::Int(self.keys.contains_key(key).into())),
            (b"DEL" | b"UNLINK", [key]) => Ok(Reply::Int(self.remove(key).into())),
            (b"GET", [key]) => Ok(match self.keys.get(key) {
                Some(Item::Text(text)) => Reply::bulk(&text[..]),
                _ => Reply::Nil,
            }),
            (b"PEXPIRE", [key, life]) => {
                let there = self.keys.contains_key(key);
                if there {
                    self.expiries
                        .insert(key.clone(), now + number::<u64>(life)?);
                }
                Ok(Reply::Int(there.into()))
            }
            (b"PTTL", [key]) => Ok(Reply::Int(match self.expiries.get(key) {
                Some(at) => (at - now) as i64,
                None if self.keys.contains_key(key) => -1,
                None => -2,
            })),
            (b"SET", [key, value, options @ ..]) => self.set(key, value, options),
            (
                b"ZADD" | b"ZREM" | b"ZCARD" | b"ZSCORE" | b"ZRANGE" | b"ZRANGEBYSCORE"
                | b"ZREMRANGEBYSCORE" | b"ZREMRANGEBYRANK",
                [key, rest @ ..],
            ) => {
                let answer = run_sorted_set_command(self.sorted_set_mut(key), &name, rest);
                self.drop_empty(key);
                answer
            }
            (b"HSET" | b"HGET" | b"HMGET" | b"HEXISTS" | b"HDEL", [key, rest @ ..]) => {
                let answer = run_hash_command(self.hash_mut(key), &name, rest);
                self.drop_empty(key);
                answer
            }
            (_, [_, ..]) if name.starts_with(b"X") => self.run_stream_command(&name, &args[1..]),
            _ => Err(format!("ERR unknown command '{}'", text(&name))),
        }
    }

    /// Returns a replica that receives no more writes.
    pub(super) fn replica(&self) -> Replica {
        Replica {
            keys: self.keys.clone(),
            expiries: self.expiries.clone(),
        }
    }

    /// Replaces the keyspace by that of a replica.
    pub(super) fn promote(&mut self, replica: Replica) {
        (self.keys, self.expiries) = (replica.keys, replica.expiries);
        for item in self.keys.values_mut() {
            if let Item::Stream(stream) = item {
                let mut groups = stream.groups.values_mut();
                groups.by_ref().for_each(Group::reset_last_seen);
            }
        }
    }

    fn set(&mut self, key: &[u8], value: &[u8], options: Args) -> Answer {
        let has = |word: &[u8]| options.iter().position(|option| option == word);
        if has(b"NX").is_some() && self.keys.contains_key(key) {
            return Ok(Reply::Nil);
        }
        if has(b"KEEPTTL").is_none() {
            self.remove(key);
        }
        self.keys.insert(key.to_vec(), Item::Text(value.to_vec()));
        if let Some(at) = has(b"PX") {
            let life: u64 = number(&options[at + 1])?;
            self.expiries.insert(key.to_vec(), self.now + life);
        }
        Ok(Reply::Status("OK"))
    }

    fn remove(&mut self, key: &[u8]) -> bool {
        self.expiries.remove(key);
        self.keys.remove(key).is_some()
    }

    fn drop_empty(&mut self, key: &[u8]) {
        let empty = match self.keys.get(key) {
            Some(Item::Sorted(members)) => members.is_empty(),
            Some(Item::Hash(fields)) => fields.is_empty(),
            _ => false,
        };
        if empty {
            self.remove(key);
        }
    }

    fn sorted_set_mut(&mut self, key: &[u8]) -> &mut BTreeMap<Vec<u8>, f64> {
        let item = self
            .keys
            .entry(key.to_vec())
            .or_insert_with(|| Item::Sorted(Default::default()));
        match item {
            Item::Sorted(members) => members,
            other => panic!("{} holds {other:?}", text(key)),
        }
    }

    fn hash_mut(&mut self, key: &[u8]) -> &mut BTreeMap<Vec<u8>, Vec<u8>> {
        let item = self
            .keys
            .entry(key.to_vec())
            .or_insert_with(|| Item::Hash(Default::default()));
        match item {
            Item::Hash(fields) => fields,
            other => panic!("{} holds {other:?}", text(key)),
        }
    }

    pub(in super::super) fn stream(&self, key: &str) -> Option<&Stream> {
        match self.keys.get(key.as_bytes())? {
            Item::Stream(stream) => Some(stream),
            _ => None,
        }
    }

    pub(super) fn stream_mut(&mut self, key: &[u8]) -> Option<&mut Stream> {
        match self.keys.get_mut(key)? {
            Item::Stream(stream) => Some(stream),
            _ => None,
        }
    }

    pub(super) fn make_stream(&mut self, key: &[u8]) -> &mut Stream {
        let item = self
            .keys
            .entry(key.to_vec())
            .or_insert_with(|| Item::Stream(Stream::default()));
        match item {
            Item::Stream(stream) => stream,
            other => panic!("{} holds {other:?}", text(key)),
        }
    }
}

fn run_sorted_set_command(members: &mut BTreeMap<Vec<u8>, f64>, name: &[u8], args: Args) -> Answer {
    let mut ascending: Vec<_> = members
        .iter()
        .map(|(member, score)| (*score, member.clone()))
        .collect();
    ascending.sort_by(|a, b| a.0.total_cmp(&b.0).then_with(|| a.1.cmp(&b.1)));
    Ok(match (name, args) {
        (b"ZADD", [score, member]) => Reply::Int(
            members
                .insert(member.clone(), number(score)?)
                .is_none()
                .into(),
        ),
        (b"ZREM", [member]) => Reply::Int(members.remove(member).is_some().into()),
        (b"ZCARD", []) => Reply::count(members.len()),
        (b"ZSCORE", [member]) => members
            .get(member)
            .map_or(Reply::Nil, |score| Reply::bulk(format!("{score:.0}"))),
        // Campanile asks only for the lowest or the highest member.
        (b"ZRANGE", [at, _, _]) => {
            let found = match &at[..] {
                b"0" => ascending.first(),
                _ => ascending.last(),
            };
            Reply::List(found.map_or_else(Vec::new, |(score, member)| {
                vec![Reply::bulk(&member[..]), Reply::bulk(format!("{score:.0}"))]
            }))
        }
        (b"ZREMRANGEBYSCORE", [_, max]) => {
            let (before, max): (usize, f64) = (members.len(), number(max)?);
            members.retain(|_, score| *score > max);
            Reply::count(before - members.len())
        }
        // In a simulation, no sorted set reaches the limit at which Campanile trims it.
        (b"ZREMRANGEBYRANK", [_, _]) => Reply::Int(0),
        (b"ZRANGEBYSCORE", [min, max, _, _, count]) => {
            let (max, count): (f64, usize) = (number(max)?, number(count)?);
            let min: f64 = number(min)?;
            let found = ascending
                .into_iter()
                .filter(|(score, _)| (min..=max).contains(score))
                .take(count);
            Reply::List(found.map(|(_, member)| Reply::Bulk(member)).collect())
        }
        _ => return Err("ERR syntax error".to_owned()),
    })
}

fn run_hash_command(fields: &mut BTreeMap<Vec<u8>, Vec<u8>>, name: &[u8], args: Args) -> Answer {
    Ok(match (name, args) {
        (b"HSET", pairs) => {
            let pairs = pairs.chunks_exact(2);
            let new =
                pairs.filter(|pair| fields.insert(pair[0].clone(), pair[1].clone()).is_none());
            Reply::count(new.count())
        }
        (b"HMGET", names) => {
            let values = names.iter().map(|name| fields.get(name));
            let values =
                values.map(|value| value.map_or(Reply::Nil, |value| Reply::bulk(&value[..])));
            Reply::List(values.collect())
        }
        (b"HEXISTS", [field]) => Reply::Int(fields.contains_key(field).into()),
        (b"HGET", [field]) => fields
            .get(field)
            .map_or(Reply::Nil, |value| Reply::bulk(&value[..])),
        (b"HDEL", names) => {
            let removed = names.iter().filter(|name| fields.remove(*name).is_some());
            Reply::count(removed.count())
        }
        _ => return Err("ERR syntax error".to_owned()),
    })
}

pub(in super::super) fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap_or("?")
}

pub(super) fn number<T: std::str::FromStr>(bytes: &[u8]) -> Result<T, String> {
    text(bytes)
        .parse()
        .map_err(|_| "ERR value is not a number or out of range".to_owned())
}

/// Returns an entry in the form of a response.
pub(super) fn entry(id: Id, fields: &Fields) -> Reply {
    let fields = fields.iter().map(|field| Reply::bulk(&field[..]));
    Reply::List(vec![
        Reply::bulk(id.to_string()),
        Reply::List(fields.collect()),
    ])
}
