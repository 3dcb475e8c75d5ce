//! Builds the names of the keys of a stream and a group.
//!
//! On a cluster, the hash tag puts all keys in the stream's slot. A stream name without a tag is
//! wrapped in braces: `orders` → `{orders}:dead:group`. A name that contains a tag keeps the tag,
//! and the key begins with the length of the name in bytes: `{orders}.v2` →
//! `11:{orders}.v2:dead:group`.
//!
//! Different streams have different keys. If the name is wrapped, the key begins with `{`, and the
//! name ends at the first `}`, because a wrapped name contains no `}`. If the name is not wrapped,
//! the key begins with the length of the name. A stream name that has the form of one of these keys
//! is refused.
//!
//! A handle with a [`Namespace`] puts the namespace before the name of the stream, and builds the
//! keys from the result: `staging:orders`, `{staging:orders}:dead:group`. The application sees the
//! stream's name without the namespace.

use std::fmt::{Display, Write as _};

use super::{namespace::Namespace, server::hash_tag};
use crate::{error::Error, message::Name, transport::PauseTarget};

/// The prefix of the names of this library's consumers. The consumer's lease follows the prefix,
/// and `scripts/holder.lua` reads the lease from the name. A consumer without the prefix is one of
/// another library, and renews no leases.
pub(super) const CONSUMER_PREFIX: &str = "campanile-";

/// The keys of a stream and one of its groups.
#[derive(Debug, Clone)]
pub(super) struct Keys {
    /// The stream's name, without the namespace.
    pub(super) stream: Name,
    /// The group.
    pub(super) group: Name,
    /// The key of the stream itself: its name with the namespace.
    pub(super) stream_key: Name,
    /// The prefix of all keys except `stream_key` and `worker_orders`.
    base: String,
    /// The stream of operators' orders to workers of the group. Its prefix differs from that of the
    /// other keys, so that an ACL can allow workers to read this key without writing to it.
    pub(super) worker_orders: String,
    /// The stream of the group's redeliveries.
    pub(super) retry_key: String,
    /// The sorted set of the group's delayed redeliveries, by due time.
    pub(super) due: String,
    /// The hash of the messages in `due`.
    pub(super) bodies: String,
    /// The stream of the group's dead letters.
    pub(super) dead: String,
    /// A sorted set. Each member is an encoded list of the names that a worker of the group serves.
    /// The score is the time at which a worker last recorded the list.
    pub(super) served_names: String,
    /// The sorted set of tasks that were delayed by their senders, by due time.
    pub(super) stream_due: String,
    /// The hash of the messages in `stream_due`.
    pub(super) stream_bodies: String,
}

impl Keys {
    /// Builds the keys of a stream and a group.
    ///
    /// # Errors
    /// If a name cannot be used. For example, a stream's name is refused if it has a `}` without a
    /// hash tag, because a tag ends at the first `}`, so braces around the name would give another
    /// slot. It is also refused if it has the form of a key of another stream.
    pub(super) fn new(namespace: &Namespace, stream: &Name, group: &Name) -> Result<Self, Error> {
        for (what, name) in [("stream", stream), ("group", group)] {
            if let Some(fault) = name.fault() {
                return Err(Error::config(format!("the {what} cannot be used: {fault}")));
            }
        }
        let base = base(namespace, stream)?;
        let of_group = |what: &str| format!("{base}:{what}:{group}");
        Ok(Self {
            stream: stream.clone(),
            group: group.clone(),
            stream_key: namespace.apply(stream),
            retry_key: of_group("retry"),
            due: of_group("due"),
            bodies: of_group("bodies"),
            dead: of_group("dead"),
            served_names: of_group("names"),
            stream_due: format!("{base}:due"),
            stream_bodies: format!("{base}:bodies"),
            worker_orders: format!("{}{ORDERS}{base}:{group}", namespace.prefix()),
            base,
        })
    }

    /// Returns the prefix of all keys except those of the stream itself and of its orders.
    pub(super) fn base(&self) -> &str {
        &self.base
    }

    /// Returns the key of the stream of reliable replies to a client.
    pub(super) fn replies(&self, client: impl Display) -> String {
        replies(&self.base, client)
    }

    /// Returns the key that stores the id of the task with this idempotency key.
    pub(super) fn idempotency(&self, key: impl Display) -> String {
        format!("{}:idem:{key}", self.base)
    }

    /// Returns the key of the record of a task, which `scripts/tasks.lua` describes.
    pub(super) fn task(&self, id: impl Display) -> String {
        format!("{}:task:{}:{id}", self.base, self.group)
    }

    /// Returns the key of the sorted set of the group's tasks in this state, by the time of their
    /// last change.
    pub(super) fn tasks(&self, state: impl Display) -> String {
        format!("{}:tasks:{state}:{}", self.base, self.group)
    }

    /// Returns the key of the stream that records the changes of the group's tasks.
    pub(super) fn feed(&self) -> String {
        format!("{}:feed:{}", self.base, self.group)
    }

    /// Returns the Redis key for the unique key `key`. It stores the id of the task that holds the
    /// unique key.
    pub(super) fn unique(&self, key: impl Display) -> String {
        // Both the group and the key may contain a colon, so the length of the group is needed.
        let Self { base, group, .. } = self;
        format!("{base}:unique:{}:{group}:{key}", group.len())
    }

    /// Returns the Redis key of a sorted set. Its members are the keys of a shared limit for which
    /// messages are parked. `scripts/parking.lua` describes the set.
    pub(super) fn parking(&self) -> String {
        format!("{}:parking:{}", self.base, self.group)
    }

    /// Returns the key of the hash of the stream's pauses. The fields have the form that
    /// [`pause_field`](Self::pause_field) returns. The value of a field is the start of the pause,
    /// in milliseconds since 1970, and the reason.
    pub(super) fn pauses(&self) -> String {
        format!("{}:control", self.base)
    }

    /// Returns the field of a pause in [`pauses`](Self::pauses).
    pub(super) fn pause_field(&self, target: &PauseTarget) -> String {
        let group = &self.group;
        match target {
            PauseTarget::Stream => "stream".to_owned(),
            PauseTarget::Group => format!("group:{group}"),
            PauseTarget::Name(name) => format!("name:{}:{group}:{name}", group.len()),
        }
    }

    /// Returns the target of the pause that is stored in this field, or `Ok(None)` if it is a pause
    /// of another group.
    ///
    /// # Errors
    /// If the field has a form that [`pause_field`](Self::pause_field) never returns. A newer
    /// version may have written it.
    pub(super) fn parse_pause(&self, field: &[u8]) -> Result<Option<PauseTarget>, ()> {
        let field = std::str::from_utf8(field).map_err(drop)?;
        let group = self.group.as_str();
        match field.split_once(':') {
            None if field == "stream" => Ok(Some(PauseTarget::Stream)),
            Some(("group", paused)) => Ok((paused == group).then_some(PauseTarget::Group)),
            Some(("name", _)) => {
                let prefix = format!("name:{}:{group}:", group.len());
                let name = field.strip_prefix(&prefix);
                Ok(name.map(|name| PauseTarget::Name(name.into())))
            }
            _ => Err(()),
        }
    }

    /// Returns the key of the hash of the group's workers: consumer → announcement.
    pub(super) fn workers(&self) -> String {
        format!("{}:workers:{}", self.base, self.group)
    }

    /// Returns the key of the current question to the group's workers.
    pub(super) fn report_request(&self) -> String {
        format!("{}:asked:{}", self.base, self.group)
    }

    /// Returns the key of the answer of the worker with this consumer.
    pub(super) fn report(&self, consumer: &str) -> String {
        // Both the group and the consumer may contain a colon, so the group's length is needed.
        let Self { base, group, .. } = self;
        format!("{base}:report:{}:{group}:{consumer}", group.len())
    }

    /// Returns the key of the group's counts in one minute. `number` counts the minutes since 1970.
    #[cfg(test)]
    fn minute(&self, number: u64) -> String {
        format!("{}:minute:{number}:{}", self.base, self.group)
    }

    /// Returns the Redis key of the permits for the limit key `key`.
    pub(super) fn permits(&self, key: &str) -> String {
        // Both the group and the key may contain a colon, so the length of the group is needed.
        let Self { base, group, .. } = self;
        format!("{base}:permits:{}:{group}:{key}", group.len())
    }

    /// Returns the Redis key of the start times of messages that have the rate-limit key `key`.
    pub(super) fn rate_starts(&self, key: &str) -> String {
        let Self { base, group, .. } = self;
        format!("{base}:starts:{}:{group}:{key}", group.len())
    }

    /// Returns the key of a value that handlers change through their outboxes.
    pub(super) fn value(&self, name: impl Display) -> String {
        format!("{}:value:{name}", self.base)
    }

    /// Returns the key of the outbox: a stream with the tasks that `consumer::forward` sends to
    /// streams in other slots.
    pub(super) fn outbox(&self) -> String {
        format!("{}:outbox", self.base)
    }

    /// Returns the key of the hash of the stream's scheduled tasks, which `scripts/schedules.lua`
    /// describes.
    #[cfg(any(feature = "schedule", test))]
    pub(super) fn schedules(&self) -> String {
        format!("{}:schedules", self.base)
    }

    /// Returns the key of a list: how many partitions this stream has had, from its creation to
    /// now.
    pub(super) fn partitions(&self) -> String {
        format!("{}:partitions", self.base)
    }

    /// Returns the key of a hash that counts the heartbeats of each member. The members are the
    /// workers of the group that own partitions of this stream.
    pub(super) fn members(&self) -> String {
        format!("{}:members:{}", self.base, self.group)
    }

    /// Returns the key of the hash that describes the owner of this stream, if it is a partition:
    /// `member`, `consumer` and `term`.
    pub(super) fn owner(&self) -> String {
        format!("{}:owner:{}", self.base, self.group)
    }

    /// Returns the key that throttles the step `what` of the upkeep (the periodic maintenance by
    /// the group's workers). While the key exists, no other worker of the group does the step.
    pub(super) fn throttle(&self, what: impl Display) -> String {
        format!("{}:gate:{what}:{}", self.base, self.group)
    }
}

/// The prefix of the keys of registries, after the namespace. No stream's name may begin with it.
const REGISTRY: &str = "campanile:registry:";
/// The prefix of the keys of orders to workers, after the namespace. No stream's name may begin
/// with it.
const ORDERS: &str = "campanile:orders:";

/// Returns the key of a registry: a sorted set of streams by the time of their last registration.
/// Its members are names without the namespace.
pub(super) fn registry(namespace: &Namespace, name: &Name) -> String {
    format!("{}{REGISTRY}{name}", namespace.prefix())
}

/// Returns the purpose of a key that is reserved for this library, with or without a namespace
/// before it. `None` if the key is not reserved.
fn reserved(key: &str) -> Option<&'static str> {
    let rest = key.split_once(':').map_or("", |(_, rest)| rest);
    let begins = |prefix| key.starts_with(prefix) || rest.starts_with(prefix);
    match () {
        () if begins(REGISTRY) => Some("a registry of streams"),
        () if begins(ORDERS) => Some("orders to workers"),
        () => None,
    }
}

/// Checks that `stream` can be the name of a stream.
pub(super) fn check(namespace: &Namespace, stream: &Name) -> Result<(), Error> {
    // `base` can refuse only these names.
    if stream.contains('}') || reserved(stream).is_some() {
        base(namespace, stream)?;
    }
    match stream.fault() {
        None => Ok(()),
        Some(fault) => Err(Error::config(format!("the stream cannot be used: {fault}"))),
    }
}

/// Returns the prefix of the keys of a stream, like [`Keys::base`]. Fails if the stream's name
/// cannot be used.
pub(super) fn base(namespace: &Namespace, stream: &Name) -> Result<String, Error> {
    let key = namespace.apply(stream);
    if let Some(purpose) = reserved(&key) {
        Err(Error::config(format!(
            "the stream name `{stream}` is that of {purpose}; choose another"
        )))
    } else if let Some(owner) = stream_of_key(&key) {
        Err(Error::config(format!(
            "the stream name `{stream}` is that of a key which belongs to the stream `{owner}`; \
             choose another"
        )))
    } else if has_hash_tag(&key) {
        Ok(format!("{}:{key}", key.len()))
    } else if key.contains('}') {
        Err(Error::config(format!(
            "the stream name `{stream}` has a `}}` without a hash tag before it; leave it out, or \
             write a tag such as `{{orders}}`"
        )))
    } else {
        Ok(format!("{{{key}}}"))
    }
}

/// Returns the stream to which a key with this name would belong. `None` if the name does not have
/// the form of a stream's key.
fn stream_of_key(key: &str) -> Option<&str> {
    const PURPOSES: [&str; 28] = [
        "retry",
        "due",
        "bodies",
        "dead",
        "names",
        "idem",
        "rpc",
        "gate",
        "task",
        "tasks",
        "feed",
        "unique",
        "value",
        "outbox",
        "schedules",
        "partitions",
        "members",
        "owner",
        "parked",
        "parking",
        "limits",
        "permits",
        "starts",
        "control",
        "workers",
        "asked",
        "report",
        "minute",
    ];
    let (name, purpose) = match key.strip_prefix('{') {
        // A wrapped name ends at the first `}`.
        Some(wrapped) => {
            let (name, rest) = wrapped.split_once('}')?;
            (name, rest.strip_prefix(':')?)
        }
        // Otherwise the key begins with the length of the name.
        None => {
            let (length, rest) = key.split_once(':')?;
            let (name, rest) = rest.split_at_checked(length.parse().ok()?)?;
            has_hash_tag(name).then_some(())?;
            (name, rest.strip_prefix(':')?)
        }
    };
    let purpose = purpose.split(':').next()?;
    PURPOSES.contains(&purpose).then_some(name)
}

/// Like [`Keys::replies`], for a stream whose [`Keys::base`] is `base`.
pub(super) fn replies(base: &str, client: impl Display) -> String {
    let mut key = String::with_capacity(base.len() + 41);
    let _ = write!(key, "{base}:rpc:{client}");
    key
}

/// Returns `true` if a cluster hashes only a part of the name.
pub(super) fn has_hash_tag(name: &str) -> bool {
    hash_tag(name.as_bytes()).len() < name.len()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NONE: Namespace = Namespace::NONE;

    fn keys(stream: &str) -> Result<Keys, Error> {
        Keys::new(&NONE, &stream.into(), &"g{1}".into())
    }

    /// The part of a key that a cluster hashes.
    fn hashed(key: &str) -> &str {
        match key
            .split_once('{')
            .and_then(|(_, rest)| rest.split_once('}'))
        {
            Some((tag, _)) if !tag.is_empty() => tag,
            _ => key,
        }
    }

    #[test]
    fn every_key_is_in_the_streams_slot() {
        for stream in ["s", "{a}", "x{a}y}", "}{a}", "a{b", "{", "a b*?"] {
            let keys = keys(stream).unwrap();
            for key in [
                &keys.retry_key,
                &keys.due,
                &keys.bodies,
                &keys.dead,
                &keys.stream_due,
                &keys.stream_bodies,
                &keys.replies("c"),
                &keys.throttle("scan"),
            ] {
                assert_eq!(hashed(key), hashed(stream), "{key}");
            }
        }
    }

    #[test]
    fn a_name_is_wrapped_unless_it_has_a_tag() {
        assert_eq!(keys("s").unwrap().dead, "{s}:dead:g{1}");
        assert_eq!(keys("{s}.v2").unwrap().retry_key, "6:{s}.v2:retry:g{1}");
        assert_eq!(keys("s").unwrap().replies(7), "{s}:rpc:7");
    }

    #[test]
    fn a_name_without_braces_is_never_refused_for_what_it_looks_like() {
        for stream in ["s:dead:g", "1:s:due", "3:{s:due", "due"] {
            assert_eq!(
                keys(stream).unwrap().dead,
                format!("{{{stream}}}:dead:g{{1}}")
            );
        }
    }

    #[test]
    fn a_name_without_a_slot_is_refused_and_so_are_empty_names_and_those_of_keys() {
        for stream in ["a}", "{}", "{}a{b}", "}{", "", "{s}:dead:g", "3:{s}:due"] {
            assert!(
                keys(stream).is_err_and(|error| error.is_config()),
                "{stream}"
            );
        }
        assert!(Keys::new(&NONE, &"s".into(), &"".into()).is_err());
    }

    /// All keys of a stream and a group.
    fn all_keys(keys: &Keys) -> Vec<String> {
        let mut all = vec![keys.stream_key.to_string()];
        let of_group = [
            &keys.retry_key,
            &keys.due,
            &keys.bodies,
            &keys.dead,
            &keys.served_names,
        ];
        all.extend(of_group.into_iter().cloned());
        all.extend([&keys.stream_due, &keys.stream_bodies].into_iter().cloned());
        all.extend(["scan", "trim", "reap"].map(|what| keys.throttle(what)));
        all.extend([
            keys.replies("c"),
            keys.idempotency("k"),
            keys.worker_orders.clone(),
            keys.workers(),
            keys.report_request(),
            keys.report("c"),
            keys.minute(7),
            keys.value("v"),
            keys.outbox(),
        ]);
        all.extend([
            keys.partitions(),
            keys.members(),
            keys.owner(),
            keys.schedules(),
        ]);
        let id = uuid::Uuid::nil();
        all.extend([keys.task(id), keys.unique("k"), keys.unique("g:k")]);
        all.extend([keys.tasks("done"), keys.feed()]);
        all.extend([
            keys.parking(),
            keys.permits("k"),
            keys.rate_starts("k"),
            keys.pauses(),
        ]);
        all
    }

    /// The keys of a stream that its groups share.
    fn shared_by_groups(keys: &Keys) -> Vec<String> {
        let mut shared = vec![keys.stream_key.to_string()];
        shared.extend([&keys.stream_due, &keys.stream_bodies].into_iter().cloned());
        shared.extend([keys.replies("c"), keys.idempotency("k")]);
        shared.extend([
            keys.value("v"),
            keys.outbox(),
            keys.partitions(),
            keys.schedules(),
            keys.pauses(),
        ]);
        shared
    }

    /// Panics if two different pairs of a stream and a group share a key that they must not share.
    fn assert_apart(one: (&str, &str), other: (&str, &str)) {
        let keys = |(stream, group): (&str, &str)| Keys::new(&NONE, &stream.into(), &group.into());
        let (Ok(first), Ok(second)) = (keys(one), keys(other)) else {
            return;
        };
        let may_share = match one.0 == other.0 {
            true => shared_by_groups(&first),
            false => Vec::new(),
        };
        let second = all_keys(&second);
        for key in all_keys(&first) {
            let shared = second.contains(&key) && !may_share.contains(&key);
            assert!(!shared, "{one:?} and {other:?} share {key}");
        }
    }

    #[test]
    fn groups_share_no_unique_key() {
        assert_apart(("s", "a"), ("s", "a:g"));
    }

    #[test]
    fn a_name_with_a_tag_shares_no_key_with_the_name_without() {
        assert_apart(("orders", "g"), ("{orders}", "g"));
        assert_apart(("{orders}", "due:g"), ("{orders}:dead", "g"));
        assert_apart(("orders", "due:g"), ("{orders}:dead", "g"));
        assert_apart(("{orders}", "g"), ("8:{orders}", "g"));
        assert_apart(("orders", "a:b"), ("orders", "b"));
    }

    /// Names that look like keys. They are built from few parts, so that collisions are frequent.
    fn part_of_a_key() -> impl Strategy<Value = String> {
        let part = prop::sample::select(vec![
            "s",
            "{s}",
            "{",
            "}",
            ":",
            "due",
            "dead",
            "retry",
            "bodies",
            "rpc",
            "c",
            "idem",
            "k",
            "gate",
            "scan",
            "g",
            "3:",
            "5",
            "partitions",
            "members",
            "owner",
            "schedules",
        ]);
        prop::collection::vec(part, 1..6).prop_map(|parts| parts.concat())
    }

    /// Functions that make a name from another name. Most of the results contain the other name.
    const DERIVATIONS: [fn(&str) -> String; 16] = [
        |name| format!("{{{name}}}"),
        |name| format!("{{{name}}}.v2"),
        |name| format!("a{{{name}}}b"),
        |name| format!("{}:{name}", name.len()),
        |name| format!("{}:{name}", name.len() + 2),
        |name| format!("{}:{{{name}}}", name.len() + 2),
        |name| format!("{name}:"),
        |name| format!(":{name}"),
        |name| format!("{name}.v2"),
        |name| format!("{name}{name}"),
        |name| format!("{name}:due"),
        |name| format!("due:{name}"),
        |name| format!("{name}:dead:g"),
        |name| format!("{{{name}}}:retry:g"),
        |name| format!("{name}7"),
        |name| name.trim_matches(['{', '}']).to_owned(),
    ];

    /// A name made from this one in at most three steps.
    fn made_of(name: String) -> impl Strategy<Value = String> {
        let steps = prop::collection::vec(prop::sample::select(DERIVATIONS.to_vec()), 0..4);
        steps.prop_map(move |steps| {
            steps
                .iter()
                .fold(name.clone(), |name, derive| derive(&name))
        })
    }

    /// Two names made from the same one.
    fn related() -> impl Strategy<Value = (String, String)> {
        let stems = vec!["x", "orders", "a.b", "a:b", "{x}", "1", "g", "due"];
        prop::sample::select(stems)
            .prop_flat_map(|stem| (made_of(stem.to_owned()), made_of(stem.to_owned())))
    }

    #[test]
    fn related_pairs_of_names_have_different_keys() {
        use proptest::test_runner::TestRunner;

        const CASES: u32 = 20_000;
        let usable = std::cell::Cell::new(0);
        let mut runner = TestRunner::new(ProptestConfig::with_cases(CASES));
        let pairs = (related(), related());
        runner
            .run(&pairs, |(streams, groups)| {
                let (one, other) = ((&*streams.0, &*groups.0), (&*streams.1, &*groups.1));
                if one != other {
                    let can_be_used = |stream: &str| base(&NONE, &stream.into()).is_ok();
                    if one.0 != other.0 && can_be_used(one.0) && can_be_used(other.0) {
                        usable.set(usable.get() + 1);
                    }
                    assert_apart(one, other);
                }
                Ok(())
            })
            .unwrap();
        // With fewer usable pairs the test would show little.
        assert!(usable.get() > CASES / 4, "{} of {CASES}", usable.get());
    }

    #[test]
    fn a_namespace_is_in_front_of_the_stream_and_users_see_the_name_without() {
        let staging = Namespace::new("staging").unwrap();
        let keys = |stream: &str| Keys::new(&staging, &stream.into(), &"g".into()).unwrap();
        let orders = keys("orders");
        assert_eq!(
            (&*orders.stream, &*orders.stream_key),
            ("orders", "staging:orders")
        );
        assert_eq!(orders.retry_key, "{staging:orders}:retry:g");
        let tagged = keys("{shop}.mails");
        assert_eq!(tagged.stream_key, "staging:{shop}.mails");
        assert_eq!(tagged.dead, "20:staging:{shop}.mails:dead:g");
        for key in [&*tagged.stream_key, &tagged.dead, &tagged.stream_due] {
            assert_eq!(hashed(key), "shop");
        }
        assert_eq!(
            registry(&staging, &"all".into()),
            "staging:campanile:registry:all"
        );
    }

    #[test]
    fn a_key_of_a_registry_is_no_stream_in_any_namespace() {
        let staging = Namespace::new("staging").unwrap();
        for (namespace, stream) in [
            (&NONE, "campanile:registry:all"),
            (&NONE, "staging:campanile:registry:all"),
            (&staging, "campanile:registry:all"),
        ] {
            let stream = Name::from(stream);
            assert!(check(namespace, &stream).is_err(), "{stream}");
            assert!(
                Keys::new(namespace, &stream, &"g".into()).is_err(),
                "{stream}"
            );
        }
        let nested = Name::from("a:campanile:registry:all");
        check(&staging, &nested).expect("no registry has that key");
        Keys::new(&staging, &nested, &"g".into()).expect("no registry has that key");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4_000))]

        #[test]
        fn two_namespaces_share_no_key(
            streams in (part_of_a_key(), part_of_a_key()),
            groups in (part_of_a_key(), part_of_a_key()),
            namespaces in prop::sample::subsequence(vec!["s", "due", "g", "n1", "c.d"], 2),
        ) {
            let of = |at: usize, stream: &str, group: &str| {
                let namespace = Namespace::new(namespaces[at]).unwrap();
                let keys = Keys::new(&namespace, &stream.into(), &group.into()).ok()?;
                let mut all = all_keys(&keys);
                all.push(registry(&namespace, &stream.into()));
                Some(all)
            };
            let (Some(one), Some(other)) = (of(0, &streams.0, &groups.0), of(1, &streams.1, &groups.1))
            else {
                return Ok(());
            };
            for key in one {
                prop_assert!(!other.contains(&key), "{namespaces:?} share {key}");
            }
        }

        #[test]
        fn different_pairs_of_names_have_different_keys(
            streams in (part_of_a_key(), part_of_a_key()),
            groups in (part_of_a_key(), part_of_a_key()),
        ) {
            let (one, other) = ((&*streams.0, &*groups.0), (&*streams.1, &*groups.1));
            if one != other {
                assert_apart(one, other);
            }
        }

        #[test]
        fn a_stream_never_has_the_name_of_a_key_of_another(
            stream in part_of_a_key(),
            group in part_of_a_key(),
        ) {
            if let Ok(keys) = Keys::new(&NONE, &stream.as_str().into(), &group.as_str().into()) {
                for key in all_keys(&keys).into_iter().filter(|key| *key != stream) {
                    let named_like_it = Keys::new(&NONE, &key.as_str().into(), &"g".into());
                    prop_assert!(named_like_it.is_err(), "{}", key);
                }
            }
        }

        #[test]
        fn any_stream_shares_its_slot_with_its_keys_or_is_refused(stream in "[{}a:*\u{e4}]{0,8}") {
            match keys(&stream) {
                Ok(keys) => {
                    let of_client = keys.replies("c");
                    let all = [&keys.retry_key, &keys.due, &keys.bodies, &keys.dead, &of_client];
                    for key in all.into_iter().chain([&keys.stream_due, &keys.stream_bodies]) {
                        prop_assert_eq!(hashed(key), hashed(&stream));
                    }
                    prop_assert!(check(&NONE, &stream.as_str().into()).is_ok());
                }
                Err(error) => {
                    prop_assert!(error.is_config());
                    let text = error.to_string();
                    let reasons = ["the name is empty", "hash tag", "belongs to the stream"];
                    prop_assert!(reasons.iter().any(|reason| text.contains(reason)), "{}", text);
                    prop_assert!(check(&NONE, &stream.as_str().into()).is_err());
                }
            }
        }
    }
}
