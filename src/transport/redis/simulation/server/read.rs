//! `XREADGROUP` and `XREAD`, with the responses of Redis 7.

use super::{
    data::{Answer, Data, Item, entry, number},
    reply::Reply,
    stream::Id,
};

/// The arguments of `XREADGROUP` or `XREAD`.
pub(super) struct Read {
    /// The group and the consumer of `XREADGROUP`. `None` for `XREAD`.
    group: Option<(Vec<u8>, Vec<u8>)>,
    from: Id,
    /// The maximum number of entries from each key.
    count: usize,
    pub(super) block: Option<u64>,
    pub(super) keys: Vec<Vec<u8>>,
    /// Set if the read is for new entries, that is, from `>`.
    new: bool,
}

impl Read {
    pub(super) fn parse(args: &[Vec<u8>]) -> Self {
        let after = |word: &[u8]| args.iter().position(|arg| arg == word).map(|at| at + 1);
        let value = |word: &[u8]| after(word).map(|at| number(&args[at]).expect("a number"));
        let streams = &args[after(b"STREAMS").expect("streams")..];
        let (keys, from) = streams.split_at(streams.len() / 2);
        Self {
            group: after(b"GROUP").map(|at| (args[at].clone(), args[at + 1].clone())),
            from: Id::parse(&from[0]).unwrap_or_default(),
            count: value(b"COUNT").unwrap_or(u64::MAX) as usize,
            block: value(b"BLOCK"),
            keys: keys.to_vec(),
            new: from.iter().all(|from| from == b">"),
        }
    }
}

impl Data {
    /// Reads the available entries, without blocking. If a key has an error, no key is read.
    pub(super) fn read(&mut self, read: &Read) -> Answer {
        let now = self.now;
        if let Some((group, consumer)) = &read.group {
            for key in &read.keys {
                self.group(key, group)?;
                if !read.new {
                    continue;
                }
                if self.refuses_next_read.remove(key) || self.unreadable.contains_key(key) {
                    return Err(
                        "WRONGTYPE Operation against a key holding the wrong kind of value"
                            .to_owned(),
                    );
                }
            }
            for key in &read.keys {
                let group = self.group(key, group)?;
                group.consumers.insert(consumer.clone(), now);
            }
        }
        let mut found = Vec::new();
        for key in &read.keys {
            let Some(stream) = self.stream_mut(key) else {
                continue;
            };
            let entries = match &read.group {
                Some((group, consumer)) if read.new => {
                    stream.read_group(group, consumer, read.count, now)
                }
                // A read of the consumer's pending entries. Campanile sends such a read only for a
                // new consumer, to check its permissions.
                Some(_) => Vec::new(),
                None => stream.after(read.from, read.count),
            };
            if read.group.is_some() {
                self.entries_read += entries.len();
            }
            self.changed |= !entries.is_empty();
            if !entries.is_empty() || (read.group.is_some() && !read.new) {
                let entries = entries.iter().map(|(id, fields)| entry(*id, fields));
                let entries = Reply::List(entries.collect());
                found.push((Reply::bulk(&key[..]), entries));
            }
        }
        Ok(if found.is_empty() {
            Reply::Nil
        } else {
            Reply::Map(found)
        })
    }

    /// Returns `true` if there are entries of this key for a blocked read.
    pub(super) fn has_entries(&self, read: &Read, key: &[u8]) -> bool {
        let Some(Item::Stream(stream)) = self.keys.get(key) else {
            return false;
        };
        match &read.group {
            Some((group, _)) => stream.has_unread(group) && !self.unreadable.contains_key(key),
            None => stream.last_entry_id() > Some(read.from),
        }
    }
}
