//! A model of a Redis server. It implements the commands that Campanile uses, on the simulation's
//! clock. A real Lua runs Campanile's scripts.

mod data;
mod lua;
mod notices;
mod read;
mod reply;
mod stream;
mod streams;

use std::collections::BTreeSet;

use super::rules::Purpose;
use crate::transport::redis::server::HashSlot;

pub(super) use self::{
    data::{Data, Item, text},
    lua::Mutation,
    reply::{Reply, take_command},
    stream::{Fields, NODE_ENTRIES, Stream},
};
use self::{
    data::{Replica, number},
    lua::Scripts,
    notices::Notices,
    read::Read,
};

/// The server's id of a connection.
pub(super) type ClientId = u64;

pub(super) struct Server {
    pub(super) data: Data,
    scripts: Scripts,
    /// The blocked reads, the oldest first.
    blocked: Vec<Blocked>,
    /// Set while the replica lags.
    replica: Option<Replica>,
    is_cluster: bool,
    /// The connections that have changed to RESP3.
    resp3: BTreeSet<ClientId>,
    pub(super) notices: Notices,
}

struct Blocked {
    client: ClientId,
    read: Read,
    until: u64,
}

impl Server {
    pub(super) fn new(mutation: Option<Mutation>, is_cluster: bool) -> Self {
        Self {
            data: Data::default(),
            scripts: Scripts::new(mutation),
            blocked: Vec::new(),
            replica: None,
            is_cluster,
            resp3: BTreeSet::new(),
            notices: Notices::default(),
        }
    }

    /// Runs a command. Returns `None` if its client is blocked.
    pub(super) fn execute(&mut self, client: ClientId, args: &[Vec<u8>]) -> Option<Reply> {
        if self.is_cluster && has_several_slots(args) {
            return Some(Reply::Error(
                "CROSSSLOT Keys in request don't hash to the same slot".to_owned(),
            ));
        }
        let answer = match (&args[0][..], args.get(1).map(|arg| &arg[..])) {
            (b"EVALSHA", _) => self.scripts.run(&mut self.data, &args[1..]),
            (b"EVAL", Some(source)) => {
                let mut call = args[1..].to_vec();
                call[0] = self.scripts.learn(text(source)).into_bytes();
                self.scripts.run(&mut self.data, &call)
            }
            (b"CLIENT", Some(b"ID")) => Ok(Reply::Int(client as i64)),
            (b"CLIENT", Some(b"UNBLOCK")) => {
                let other = number(&args[2]).unwrap_or(0);
                let waiting = self
                    .blocked
                    .iter_mut()
                    .find(|blocked| blocked.client == other);
                // The read ends as if its timeout had passed.
                let unblocked = waiting.map(|blocked| blocked.until = 0);
                Ok(Reply::Int(unblocked.is_some().into()))
            }
            (b"INFO", _) if self.is_cluster => Ok(Reply::bulk(
                "# Server\r\nredis_version:7.0.15\r\nredis_mode:cluster\r\n",
            )),
            (b"INFO", _) => Ok(Reply::bulk("# Server\r\nredis_version:7.0.15\r\n")),
            (b"CLUSTER", Some(b"INFO")) => Ok(Reply::bulk("cluster_state:ok\r\n")),
            (b"CLUSTER", Some(b"SLOTS")) => {
                let node = ["simulation".into(), "6379".into(), "id".into()];
                Ok(slot_map(node))
            }
            (b"ROLE", _) => Ok(Reply::List(vec![
                Reply::bulk("master"),
                Reply::Int(0),
                Reply::List(Vec::new()),
            ])),
            // In this model, only a cluster has RESP3.
            (b"HELLO", _) if self.is_cluster => {
                self.resp3.insert(client);
                Ok(Reply::List(Vec::new()))
            }
            (b"CLIENT", Some(b"TRACKING")) => {
                self.notices.track(client);
                Ok(Reply::Status("OK"))
            }
            (b"EXISTS", _) if self.is_cluster => {
                self.notices.remember(client, &args[1..]);
                let there = args[1..]
                    .iter()
                    .filter(|key| self.data.keys.contains_key(*key));
                Ok(Reply::count(there.count()))
            }
            (b"SUBSCRIBE", Some(channel)) => {
                let subscribed = vec![
                    Reply::bulk("subscribe"),
                    Reply::bulk(channel),
                    Reply::Int(1),
                ];
                Ok(match self.has_resp3(client) {
                    true => Reply::Push(subscribed),
                    false => Reply::List(subscribed),
                })
            }
            (b"PING", _) if self.has_resp3(client) => Ok(Reply::Status("PONG")),
            // The server responds to a `PING` in this form if the client is subscribed.
            (b"PING", _) => Ok(Reply::List(vec![Reply::bulk("pong"), Reply::bulk("")])),
            (b"XREADGROUP" | b"XREAD", _) => {
                let read = Read::parse(&args[1..]);
                match self.data.read(&read) {
                    Ok(Reply::Nil) if read.block.is_some() => {
                        let until = self.data.now + read.block.unwrap_or_default();
                        self.blocked.push(Blocked {
                            client,
                            read,
                            until,
                        });
                        return None;
                    }
                    answer => answer,
                }
            }
            _ => self.data.call(args),
        };
        Some(answer.unwrap_or_else(Reply::Error))
    }

    /// Ends one blocked read for which there is an entry, or whose timeout has passed.
    pub(super) fn wake_one(&mut self) -> Option<(ClientId, Reply)> {
        for at in 0..self.blocked.len() {
            let Blocked { read, until, .. } = &self.blocked[at];
            let mut keys = read.keys.iter();
            let key = keys.find(|key| self.data.has_entries(read, key)).cloned();
            if key.is_none() && *until > self.data.now {
                continue;
            }
            let Blocked {
                client, mut read, ..
            } = self.blocked.remove(at);
            // Redis reads only the key that unblocked the client.
            read.keys = Vec::from_iter(key);
            let reply = self.data.read(&read).unwrap_or_else(Reply::Error);
            return Some((client, reply));
        }
        None
    }

    /// Returns the earliest timeout of the blocked reads.
    pub(super) fn next_timeout(&self) -> Option<u64> {
        self.blocked.iter().map(|blocked| blocked.until).min()
    }

    pub(super) fn has_resp3(&self, client: ClientId) -> bool {
        self.resp3.contains(&client)
    }

    /// Takes the notices that are to be sent at this time.
    pub(super) fn take_notices(&mut self, now: u64) -> Vec<(ClientId, Reply)> {
        let written = std::mem::take(&mut self.data.written);
        self.notices.take(written, now)
    }

    pub(super) fn is_blocked(&self, client: ClientId) -> bool {
        self.blocked.iter().any(|blocked| blocked.client == client)
    }

    /// Removes closed connections.
    pub(super) fn forget(&mut self, clients: &BTreeSet<ClientId>) {
        self.blocked
            .retain(|blocked| !clients.contains(&blocked.client));
        self.resp3.retain(|client| !clients.contains(client));
        self.notices.forget(clients);
    }

    /// Drops the state that does not survive a restart.
    pub(super) fn restart(&mut self) {
        self.blocked.clear();
        self.scripts.flush();
        self.resp3.clear();
        self.notices.clear();
    }

    /// Makes the replica stop, so that it lacks all later writes.
    pub(super) fn stop_replica(&mut self) {
        self.replica = Some(self.data.replica());
    }

    /// Promotes the replica that was stopped. It knows no script and no connection.
    pub(super) fn fail_over(&mut self) {
        let replica = self.replica.take().expect("the replica has stopped");
        self.data.promote(replica);
        self.restart();
    }

    /// Returns the kind of a command: its name, or the beginning of its script's first comment.
    pub(super) fn kind<'a>(&'a self, args: &'a [Vec<u8>]) -> &'a str {
        match (&args[0][..], args.get(1)) {
            (b"EVALSHA", Some(hash)) => self.scripts.name(text(hash)).unwrap_or("?"),
            (b"EVAL", Some(source)) => {
                let hash = redis::Script::new(text(source)).get_hash().to_owned();
                self.scripts.name(&hash).unwrap_or("EVAL")
            }
            (name, _) => text(name),
        }
    }

    /// Returns the kind of a command, as far as the rules of the protocol depend on it.
    pub(super) fn purpose(&self, args: &[Vec<u8>]) -> Purpose {
        let acknowledging = [
            "XACK",
            "Acknowledges on the retry stream",
            "Stores replies and acknowledges their requests",
        ];
        match self.kind(args) {
            kind if acknowledging.contains(&kind) => Purpose::Acknowledges,
            kind if kind.starts_with("Creates the group") => Purpose::CreatesGroup,
            _ => Purpose::Other,
        }
    }

    /// Returns the number of entries that a call of the script for several streams may read.
    pub(super) fn room(&self, args: &[Vec<u8>]) -> Option<usize> {
        if !self.kind(args).starts_with("Reads new entries") {
            return None;
        }
        let keys: usize = number(&args[2]).expect("a number of keys");
        // This number is the argument after the group and the consumer.
        Some(number(&args[3 + keys + 2]).expect("the room"))
    }

    /// Describes a command in one line.
    pub(super) fn describe(&self, args: &[Vec<u8>]) -> String {
        let skipped = if args[0].starts_with(b"EVAL") { 2 } else { 1 };
        let name = self.kind(args);
        let words = args[skipped..].iter().map(|arg| match text(arg) {
            word if word.len() > 80 => "…",
            word => short(word),
        });
        format!("{name} {}", words.collect::<Vec<_>>().join(" "))
    }
}

/// Returns the map of a cluster with one node.
fn slot_map(node: [String; 3]) -> Reply {
    let [host, port, id] = node;
    let port = port.parse().expect("a number");
    let node = vec![Reply::bulk(host), Reply::Int(port), Reply::bulk(id)];
    let all = vec![Reply::Int(0), Reply::Int(16_383), Reply::List(node)];
    Reply::List(vec![Reply::List(all)])
}

/// Returns `true` if the keys of a command or a script are in several slots.
fn has_several_slots(args: &[Vec<u8>]) -> bool {
    let keys = match &args[0][..] {
        b"EVAL" | b"EVALSHA" => {
            let keys: usize = number(&args[2]).expect("a number of keys");
            &args[3..3 + keys]
        }
        b"XREADGROUP" | b"XREAD" => {
            let at = args.iter().position(|arg| arg == b"STREAMS");
            let streams = &args[at.expect("streams") + 1..];
            &streams[..streams.len() / 2]
        }
        b"EXISTS" => &args[1..],
        _ => return false,
    };
    let slot = |key: &[u8]| HashSlot::of(key);
    keys.windows(2).any(|pair| slot(&pair[0]) != slot(&pair[1]))
}

/// Returns the last part of a consumer's name, without the common prefix.
pub(super) fn short(name: &str) -> &str {
    match name.starts_with("campanile-") {
        true => &name[name.len() - 4..],
        false => name,
    }
}
