//! The Lua scripts, and their calls.
//!
//! Each script is one atomic step. The scripts that settle a delivery begin with the fence: the
//! entry must be pending for this consumer. Outside of owned partitions, the scripts that settle a
//! delivery as *done* have no fence, since the first worker to finish wins.

use std::sync::OnceLock;

use redis::Cmd;

use super::connection::argument;

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
    /// Accepts a task with a delay, a key or a record.
    ACCEPT = "fence" "tasks" "accepting" "accept";
    /// Cancels a task.
    CANCEL = "fence" "fields" "tasks" "idempotency" "parking" "cancel";
    /// Moves due messages to a stream.
    PROMOTE = "fence" "fields" "tasks" "promotion" "promote";
    /// Records that a worker starts a task.
    START = "fence" "tasks" "start";
    /// Stores the progress or the checkpoint of a running task.
    NOTE = "fence" "tasks" "note";
    /// Lists a group's tasks in a state.
    LIST_TASKS = "fence" "tasks" "list_tasks";
    /// Reads changes of tasks from feeds.
    CHANGES = "order" "changes";
    /// Creates the group if it does not exist.
    JOIN = "order" "join";
    /// Deletes a consumer for which nothing is pending.
    LEAVE = "leave";
    /// Acknowledges entries of the retry stream.
    ACKNOWLEDGE = "acknowledge";
    /// Redelivers an entry, now or after a delay.
    REDELIVER = "fence" "fields" "tasks" "parking" "moving" "redeliver";
    /// Parks a delivery until it gets a permit.
    PARK = "fence" "fields" "tasks" "parking" "moving" "park";
    /// Takes a permit of a limit, or keeps it for longer.
    ACQUIRE = "fence" "fields" "tasks" "parking" "acquire";
    /// Begins or ends a pause.
    CONTROL = "fence" "fields" "tasks" "parking" "control";
    /// Removes messages that wait for a group.
    PURGE = "fence" "fields" "tasks" "idempotency" "parking" "group_info" "purge";
    /// Returns a permit of a limit.
    RELEASE = "fence" "fields" "tasks" "parking" "release";
    /// Books the next free time of a rate limit.
    BOOK = "fence" "book";
    /// Ends a delivery: as done in an owned partition, as a dead letter, or discarded.
    FINISH = "fence" "fields" "tasks" "idempotency" "parking" "answering" "finish";
    /// Ends a delivery as done, with its follow-ups.
    COMPLETE = "fence" "tasks" "accepting" "answering" "complete";
    /// Stores replies and acknowledges their requests.
    REPLY = "reply";
    /// Renews leases.
    RENEW = "fence" "renewal" "renew";
    /// Renews leases, and does the rest of a consumer's upkeep.
    TICK = "throttle" "holder" "order" "fence" "fields" "tasks" "parking" "renewal" "promotion" "trimming" "reaping" "workers" "tick";
    /// Reads new entries of several streams.
    FETCH = "pending" "fetch";
    /// Counts the pending entries of a group.
    COUNT_PENDING = "pending" "count_pending";
    /// Records the names that a worker serves, and lists those of the group's other workers.
    SERVED_NAMES = "fence" "served_names";
    /// Registers a stream for the workers of a registry.
    REGISTER = "fence" "register";
    /// Records the number of partitions of a stream.
    PARTITIONS = "partitions";
    /// Counts a heartbeat of a member of a group whose members own partitions.
    MEMBERS = "members";
    /// Makes a member the owner of a partition.
    OWN = "own";
    /// Frees a partition.
    DISOWN = "disown";
    /// Makes the entries of former owners pending for the owner of a partition.
    INHERIT = "inherit";
    /// Counts one more delivery of an entry that its consumer keeps.
    ATTEMPT = "fence" "attempt";
    /// Takes a stream out of its registry.
    RETIRE = "fence" "order" "retire";
    /// Fetches entries again whose read succeeded and whose response was lost.
    RECOVER = "fence" "recover";
    /// Claims entries whose leases have expired.
    CLAIM = "throttle" "holder" "fence" "fields" "tasks" "idempotency" "parking" "claim";
    /// Replays or purges dead letters.
    DEAD = "fence" "fields" "tasks" "dead";
    /// Lists dead letters.
    LIST_DEAD = "page" "list_dead";
    /// Lists the messages of a stream that a group has not read.
    LIST_UNREAD = "order" "group_info" "page" "list_unread";
    /// Lists the deliveries of a group that are not settled.
    LIST_PENDING = "group_info" "list_pending";
    /// Lists delayed messages.
    LIST_DUE = "list_due";
    /// Lists the keys for which messages are parked.
    LIST_PARKED = "fence" "fields" "tasks" "parking" "list_parked";
    /// Stores a scheduled task.
    #[cfg(feature = "schedule")]
    PUT_SCHEDULE = "fence" "schedules" "put_schedule";
    /// Removes, pauses or resumes a schedule.
    #[cfg(feature = "schedule")]
    CHANGE_SCHEDULE = "fence" "schedules" "change_schedule";
    /// Lists the schedules of a stream.
    #[cfg(feature = "schedule")]
    LIST_SCHEDULES = "fence" "list_schedules";
    /// Sends the task of a schedule.
    #[cfg(feature = "schedule")]
    FIRE_SCHEDULE = "fence" "tasks" "accepting" "schedules" "fire_schedule";
    /// Asks the workers of a group a question.
    ASK = "fence" "ask";
    /// Stores the answer of a worker.
    REPORT = "fence" "report";
    /// Reads the answers of workers.
    COLLECT = "fence" "tasks" "collect";
    /// Gives an order to a worker.
    ORDER = "order_worker";
    /// Reads the history of a group.
    HISTORY = "fence" "tasks" "history";
    /// Deletes a group.
    DROP_GROUP = "fence" "tasks" "holder" "group_info" "drop_group";
    /// Deletes a consumer.
    DROP_CONSUMER = "holder" "group_info" "drop_consumer";
    /// Counts a group's entries and consumers.
    STATS = "fence" "holder" "group_info" "waiting" "stats";
    /// Counts all that waits for a group.
    BACKLOG = "fence" "holder" "group_info" "waiting" "backlog";
    /// Tells senders with a bound what waits on a stream.
    BOUND = "fence" "holder" "group_info" "waiting" "bound";
}

/// A Lua script with one key, for state that several processes of an application share, such as
/// locks, limits and claims. Declare it as a `static`.
///
/// A call runs over the connection of a [`Redis`](crate::Redis) handle, on the primary of the key,
/// also behind Sentinels, on a cluster, and after a failover. The script is called by its hash, and
/// then by its source if the server does not know the hash.
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
/// **A script must be repeatable**: if the connection is lost before the response, it is sent
/// again, within the [time limit](super::ScriptCall::timeout) of the call, although it may have
/// run. A second run must have the same response as the first, and no further effect. `LOCK` above
/// is repeatable, since it stores the owner of the lock. A script that increments a number is not.
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

    /// Makes the same call with the source instead of the hash. The server then caches the script,
    /// with one round trip less than by `SCRIPT LOAD`.
    pub(in crate::transport::redis) fn with_text(&self, call: &[u8]) -> Vec<u8> {
        let args = |args: [&str; 2]| {
            let mut out = Vec::new();
            for arg in args {
                argument(&mut out, arg.as_bytes());
            }
            out
        };
        let head = call
            .iter()
            .position(|&byte| byte == b'\n')
            .map_or(0, |end| end + 1);
        let rest = head + args([BY_HASH, self.hash()]).len();
        [&call[..head], &args(["EVAL", self.text]), &call[rest..]].concat()
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
