//! The Lua scripts, and their calls.
//!
//! Each script is one atomic step. A script that settles a delivery is *fenced*: it does nothing
//! unless the entry is pending for this consumer. `ACKNOWLEDGE` and `REPLY` are not fenced: if two
//! workers have handled the same message, the first one to finish settles it. Each script is the
//! concatenation of its files. `common.lua` has the functions that check the fence, acknowledge an
//! entry, and read the server's clock.

use std::sync::OnceLock;

use redis::Cmd;

use super::connection::append_argument;

const BY_HASH: &str = "EVALSHA";

macro_rules! scripts {
    ($($(#[$doc:meta])* $name:ident = $($file:literal)+;)*) => {$(
        $(#[$doc])*
        pub(in crate::transport::redis) static $name: Script =
            Script::new(concat!($(include_str!(concat!($file, ".lua"))),+));
    )*

        /// The sources of all scripts.
        #[cfg(test)]
        pub(in crate::transport::redis) fn sources() -> impl Iterator<Item = &'static str> {
            [$(&$name),*].into_iter().map(|script: &Script| script.text)
        }
    };
}

scripts! {
    /// Accepts a task that is delayed, unique or tracked, or that has an idempotency key.
    ACCEPT = "common" "tasks" "accepting" "accept";
    /// Cancels a task.
    CANCEL = "common" "fields" "tasks" "idempotency" "parking" "cancel";
    /// Moves due messages to a primary stream or a retry stream.
    PROMOTE = "common" "fields" "tasks" "promotion" "promote";
    /// Records that a worker starts a task.
    START = "common" "tasks" "start";
    /// Stores the progress or the checkpoint of a running task in the task's record.
    STORE_PROGRESS = "common" "tasks" "note";
    /// Lists the tasks of a group that are in a given state.
    LIST_TASKS = "common" "tasks" "list_tasks";
    /// Reads changes of tasks from feeds.
    CHANGES = "entry_ids" "changes";
    /// Creates the group if it does not exist.
    JOIN = "entry_ids" "join";
    /// Deletes this consumer, unless entries are pending for it.
    LEAVE = "leave";
    /// Acknowledges entries of the retry stream.
    ACKNOWLEDGE = "acknowledge";
    /// Redelivers an entry, now or after a delay.
    REDELIVER = "common" "fields" "tasks" "parking" "moving" "redeliver";
    /// Parks a delivery until it gets a permit, or until the pause of its name ends.
    PARK = "common" "fields" "tasks" "parking" "moving" "park";
    /// Takes a permit of a limit, or extends one.
    ACQUIRE = "common" "fields" "tasks" "parking" "acquire";
    /// Begins or ends the pause of a stream, a group or a name.
    SET_PAUSE = "common" "fields" "tasks" "parking" "control";
    /// Removes messages that wait for a group.
    PURGE = "common" "fields" "tasks" "idempotency" "parking" "group_info" "purge";
    /// Returns a permit of a limit, and hands it to the next parked message.
    RETURN_PERMIT = "common" "fields" "tasks" "parking" "release";
    /// Books the next free time of a rate limit.
    BOOK_TIME = "common" "book";
    /// Ends a delivery: as done in an owned partition, as a dead letter, or discarded.
    FINISH = "common" "fields" "tasks" "idempotency" "parking" "answering" "finish";
    /// Ends a delivery as done, with its follow-ups.
    COMPLETE = "common" "tasks" "accepting" "answering" "complete";
    /// Stores replies and acknowledges their requests.
    REPLY = "reply";
    /// Renews leases.
    RENEW = "common" "renewal" "renew";
    /// Renews leases, and does the rest of a consumer's upkeep.
    TICK = "throttle" "holder" "entry_ids" "common" "fields" "tasks" "parking" "renewal" "promotion" "trimming" "reaping" "workers" "tick";
    /// Reads new entries of several streams.
    FETCH = "pending" "fetch";
    /// Counts the pending entries of a group.
    COUNT_PENDING = "pending" "count_pending";
    /// Records the names that a worker serves, and lists the names that the group's other workers
    /// serve.
    SERVED_NAMES = "common" "served_names";
    /// Adds a stream to a registry. The workers of the registry then serve the stream.
    REGISTER = "common" "register";
    /// Records the number of partitions of a stream.
    RECORD_PARTITIONS = "partitions";
    /// Increments the heartbeat of a member, in a group whose members own partitions.
    MEMBER_HEARTBEAT = "members";
    /// Makes a member the owner of a partition.
    OWN = "own";
    /// Frees a partition.
    DISOWN = "disown";
    /// Moves the pending entries of a partition's former owners to the current owner.
    INHERIT = "inherit";
    /// Counts another attempt for an entry that is run again without a redelivery.
    COUNT_ATTEMPT = "common" "attempt";
    /// Removes a stream from its registry.
    RETIRE = "common" "entry_ids" "retire";
    /// Fetches entries again if the response to their read was lost.
    RECOVER = "common" "recover";
    /// Claims entries whose leases have expired.
    CLAIM = "throttle" "holder" "common" "fields" "tasks" "idempotency" "parking" "claim";
    /// Replays or purges dead letters.
    CHANGE_DEAD = "common" "fields" "tasks" "dead";
    /// Lists dead letters.
    LIST_DEAD = "page" "list_dead";
    /// Lists the messages of a stream that a group has not read.
    LIST_UNREAD = "entry_ids" "group_info" "page" "list_unread";
    /// Lists the deliveries of a group that are not settled.
    LIST_PENDING = "group_info" "list_pending";
    /// Lists delayed messages.
    LIST_DUE = "list_due";
    /// Lists the keys for which messages are parked.
    LIST_PARKED = "common" "fields" "tasks" "parking" "list_parked";
    /// Stores a scheduled task.
    #[cfg(feature = "schedule")]
    PUT_SCHEDULE = "common" "schedules" "put_schedule";
    /// Removes, pauses or resumes a schedule.
    #[cfg(feature = "schedule")]
    CHANGE_SCHEDULE = "common" "schedules" "change_schedule";
    /// Lists the schedules of a stream.
    #[cfg(feature = "schedule")]
    LIST_SCHEDULES = "common" "list_schedules";
    /// Sends the task of a schedule.
    #[cfg(feature = "schedule")]
    FIRE_SCHEDULE = "common" "tasks" "accepting" "schedules" "fire_schedule";
    /// Asks the workers of a group a question.
    ASK = "common" "ask";
    /// Stores the answer of a worker.
    REPORT = "common" "report";
    /// Reads the answers of workers.
    COLLECT = "common" "tasks" "collect";
    /// Gives an order to a worker.
    GIVE_ORDER = "order_worker";
    /// Reads the history of a group.
    HISTORY = "common" "tasks" "history";
    /// Deletes a group.
    DROP_GROUP = "common" "tasks" "holder" "group_info" "drop_group";
    /// Deletes a consumer.
    DROP_CONSUMER = "holder" "group_info" "drop_consumer";
    /// Counts a group's entries and consumers.
    STATS = "common" "holder" "group_info" "waiting" "stats";
    /// Counts the messages that wait for a group, separately for each reason to wait.
    BACKLOG = "common" "holder" "group_info" "waiting" "backlog";
    /// Counts the messages that wait on a stream, for senders that limit this number.
    COUNT_WAITING = "common" "holder" "group_info" "waiting" "bound";
}

/// A Lua script with one key, for state that several processes of an application share, such as
/// locks, limits and claims. Declare it as a `static`.
///
/// A call runs over the connection of a [`Redis`](crate::Redis) handle, on the primary of the key.
/// The handle finds the primary behind Sentinels, on a cluster, and after a failover. The handle
/// sends the hash of the script, and sends the source only if the server does not know the hash.
///
/// ```no_run
/// use campanile::{Error, Redis, transport::redis::{Script, ScriptResponse}};
///
/// /// Takes a lock, or keeps it. ARGV: owner, milliseconds. Returns 1 if the owner has the lock now.
/// static LOCK: Script = Script::new(
///     "local owner = redis.call('GET', KEYS[1])
///      if owner and owner ~= ARGV[1] then return 0 end
///      redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
///      return 1",
/// );
///
/// async fn lock(redis: &Redis, name: &str, owner: &str) -> Result<bool, Error> {
///     let call = LOCK.key(format!("lock:{name}")).arg(owner).arg(30_000.to_string());
///     Ok(call.run(redis).await? == ScriptResponse::Int(1))
/// }
/// ```
///
/// # Repeatable scripts
/// **A script must be repeatable**: if the connection is lost before the response, the call is sent
/// again, although the script may have run. This goes on until the [time
/// limit](super::ScriptCall::timeout) of the call. A second run must have the same response as the
/// first, and no further effect. `LOCK` above is repeatable, since it stores the owner of the lock.
/// A script that increments a number is not repeatable.
///
/// A failover may lose the last writes of the old primary, including those of scripts: see
/// [durability](crate::guide::durability).
///
/// # Rights
/// A call needs `+evalsha +eval`, and permission for the key and the commands of the script.
#[derive(Debug)]
pub struct Script {
    text: &'static str,
    hash: OnceLock<String>,
}

impl Script {
    /// Makes a script from its source. A call has one key, `KEYS[1]`, and any number of arguments.
    pub const fn new(text: &'static str) -> Self {
        Self {
            text,
            hash: OnceLock::new(),
        }
    }

    /// Makes an `EVALSHA` with these keys and arguments.
    pub(in crate::transport::redis) fn call(
        &self,
        keys: &[&str],
        args: impl FnOnce(&mut Cmd),
    ) -> Cmd {
        let size = keys.iter().map(|key| key.len() + 8).sum::<usize>();
        let mut cmd = Cmd::with_capacity(3 + 2 * keys.len(), 256 + size);
        cmd.arg(BY_HASH).arg(self.hash()).arg(keys.len()).arg(keys);
        args(&mut cmd);
        cmd
    }

    /// Converts an encoded `EVALSHA` of this script to an `EVAL`, which has the source instead of
    /// the hash. The server then caches the script. `SCRIPT LOAD` would need one more round trip.
    pub(in crate::transport::redis) fn with_text(&self, call: &[u8]) -> Vec<u8> {
        let encode = |words: [&str; 2]| {
            let mut out = Vec::new();
            for arg in words {
                append_argument(&mut out, arg.as_bytes());
            }
            out
        };
        // The first line has the number of arguments, which stays the same.
        let head = call
            .iter()
            .position(|&byte| byte == b'\n')
            .map_or(0, |end| end + 1);
        let rest = head + encode([BY_HASH, self.hash()]).len();
        [&call[..head], &encode(["EVAL", self.text]), &call[rest..]].concat()
    }

    fn hash(&self) -> &str {
        self.hash
            .get_or_init(|| redis::Script::new(self.text).get_hash().to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_by_hash_turns_into_the_same_call_with_the_text() {
        static ECHO: Script = Script::new("return ARGV[1]");
        let call = ECHO.call(&["k1", "k2"], |cmd| {
            cmd.arg(b"\xff").arg(7);
        });
        let mut expected = redis::cmd("EVAL");
        expected
            .arg("return ARGV[1]")
            .arg(2)
            .arg("k1")
            .arg("k2")
            .arg(b"\xff")
            .arg(7);
        assert_eq!(
            ECHO.with_text(&call.get_packed_command()),
            expected.get_packed_command()
        );
    }
}
