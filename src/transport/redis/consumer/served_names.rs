//! Warns if the workers of a group serve different names. If the routes of one worker differ, that
//! worker gets messages for which it has no route. The other workers get messages that only that
//! worker could handle.
//!
//! Each worker records the list of its names when it starts, and then once a minute. The records
//! are in a sorted set of the group, scored by time. Workers with the same names share a record. A
//! worker that leaves removes the record, and the others with the same names add it again within a
//! minute. A record that no worker renews is removed.

use std::{
    collections::{BTreeSet, HashSet},
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use redis::Cmd;
use tokio::time::Instant;

use super::{member::Member, streams::ServedStream, upkeep_connection::UpkeepConnection};
use crate::{
    error::Error,
    message::EscapedText,
    sync::lock,
    transport::{
        Interest,
        redis::{
            response::{Value, array, bytes, wrong_length},
            scripts,
        },
    },
};

/// The time after which a worker renews its record.
const RECORD_PERIOD: Duration = Duration::from_secs(60);
/// A list that was not recorded again within this time is removed.
const LIST_LIFETIME: Duration = Duration::from_secs(150);
/// The maximum number of lists that are kept for a group.
const MAX_LISTS: usize = 16;
/// The maximum size of a list, in bytes. Further names are left out.
const MAX_LIST_BYTES: usize = 8 << 10;
/// The last line of a list from which names were left out. No other line looks like this, since all
/// other lines begin with a kind.
const INCOMPLETE: &str = "...";
/// The maximum number of names in each of the two lists of a warning: names that only other workers
/// serve, and names that only this worker serves.
const MAX_SHOWN: usize = 5;
/// The maximum number of lists that a worker ever compares with its own list. Bounded, since other
/// clients can write any number of lists.
const MAX_COMPARED: usize = 1024;
/// The maximum number of streams of one call. Bounded, since a script blocks the server.
const MAX_STREAMS: usize = 256;

/// The names that this worker serves.
pub(super) struct ServedNames {
    /// The kinds and names, sorted, one pair per line, such as `task orders.create`.
    list: String,
    /// The lists of other workers that were already compared. Shared by the slots of a cluster.
    compared: Mutex<HashSet<String>>,
}

impl ServedNames {
    /// Lists the names that a worker serves. `None` if the worker may serve any name.
    pub(super) fn of(interest: &Interest) -> Option<Self> {
        let names = interest.routes.as_ref()?.iter();
        let names: BTreeSet<_> = names.map(|(kind, name)| format!("{kind} {name}")).collect();
        let mut list = String::new();
        for name in names {
            if list.len() + name.len() > MAX_LIST_BYTES {
                list.push_str(INCOMPLETE);
                break;
            }
            list.push_str(&name);
            list.push('\n');
        }
        Some(Self {
            list,
            compared: Mutex::default(),
        })
    }

    /// Returns the list in the form in which it is recorded.
    pub(super) fn list(&self) -> &str {
        &self.list
    }

    /// Compares this worker's list with those lists of other workers that were not compared yet.
    /// Returns the text of a warning if a list differs.
    fn compare(&self, others: &[Bytes]) -> Option<String> {
        let mut compared = lock(&self.compared);
        let (own, is_complete) = names(&self.list);
        let (mut elsewhere, mut here) = (BTreeSet::new(), BTreeSet::new());
        for other in others {
            let other = String::from_utf8_lossy(other);
            if compared.len() >= MAX_COMPARED || !compared.insert(other.to_string()) {
                continue;
            }
            let (theirs, are_complete) = names(&other);
            if is_complete {
                elsewhere.extend(theirs.difference(&own).map(|name| name.to_string()));
            }
            if are_complete {
                here.extend(own.difference(&theirs).map(|name| name.to_string()));
            }
        }
        let elsewhere = shown_list(&elsewhere)
            .map(|names| format!("workers of this group serve {names}, which this one does not"));
        let here = shown_list(&here)
            .map(|names| format!("this worker serves {names}, which others of this group do not"));
        let parts: Vec<_> = elsewhere.into_iter().chain(here).collect();
        (!parts.is_empty()).then(|| parts.join("; "))
    }
}

/// Returns the names in a list, and `false` if some were left out of it.
fn names(list: &str) -> (BTreeSet<&str>, bool) {
    let names = list.lines().filter(|line| *line != INCOMPLETE);
    (names.collect(), !list.ends_with(INCOMPLETE))
}

/// Formats the first names for the warning; `None` if there are none.
fn shown_list(names: &BTreeSet<String>) -> Option<String> {
    let shown = names.iter().take(MAX_SHOWN);
    let shown: Vec<_> = shown
        .map(|name| format!("`{}`", EscapedText::new(name)))
        .collect();
    let shown = shown.join(", ");
    match names.len() {
        0 => None,
        count if count > MAX_SHOWN => Some(format!("{shown} and {} more", count - MAX_SHOWN)),
        _ => Some(shown),
    }
}

/// Records the names of a worker, as a part of its upkeep.
pub(super) struct NameRecorder {
    names: Arc<ServedNames>,
    next_at: Instant,
}

impl NameRecorder {
    pub(super) fn new(names: Arc<ServedNames>) -> Self {
        let next_at = Instant::now();
        Self { names, next_at }
    }

    /// Records the names on these streams if the record is due, and warns about workers of the
    /// group with other names. An error is only logged, since messages are handled without the
    /// record.
    pub(super) async fn record(
        &mut self,
        server: &UpkeepConnection,
        member: &Member,
        streams: &[Arc<ServedStream>],
    ) {
        if streams.is_empty() || Instant::now() < self.next_at {
            return;
        }
        self.next_at = Instant::now() + RECORD_PERIOD;
        for streams in streams.chunks(MAX_STREAMS) {
            match self.call(server, streams).await {
                Ok(others) => {
                    for (stream, others) in streams.iter().zip(others) {
                        self.warn(member, stream, &others);
                    }
                }
                Err(error) => {
                    let error = error.chain();
                    tracing::debug!(error, "the names that this worker serves were not recorded");
                }
            }
        }
    }

    async fn call(
        &self,
        server: &UpkeepConnection,
        streams: &[Arc<ServedStream>],
    ) -> Result<Vec<Vec<Bytes>>, Error> {
        let keys: Vec<_> = streams.iter().map(|it| &*it.keys.served_names).collect();
        let args = |cmd: &mut Cmd| {
            cmd.arg(&self.names.list)
                .arg(LIST_LIFETIME.as_millis() as u64)
                .arg(MAX_LISTS);
        };
        let response = server.script(&scripts::SERVED_NAMES, &keys, args).await?;
        decode(response, keys.len())
    }

    fn warn(&self, member: &Member, stream: &ServedStream, others: &[Bytes]) {
        if let Some(differences) = self.names.compare(others) {
            tracing::warn!(
                stream = %stream.keys.stream,
                group = %member.group,
                consumer = %member.consumer,
                "{differences}; each message goes to any worker of the group, and fails at one that \
                 has no route for it: give services with different routes different groups, with \
                 `.group(…)`, or different streams. While a new version is deployed this is expected"
            );
        }
    }
}

/// Decodes the response: for each stream, the lists of other workers.
pub(super) fn decode(response: Value, streams: usize) -> Result<Vec<Vec<Bytes>>, Error> {
    let lists = array(response)?;
    if lists.len() != streams {
        return Err(wrong_length(streams, lists.len()));
    }
    let others = |lists| array(lists)?.into_iter().map(bytes).collect();
    lists.into_iter().map(others).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{Kind, Name};

    fn serving(names: &[&str]) -> ServedNames {
        let mut interest = Interest::stream();
        let names = names.iter().map(|name| (Kind::Task, Name::from(*name)));
        interest.routes = Some(names.collect());
        ServedNames::of(&interest).unwrap()
    }

    fn lists(others: &[&ServedNames]) -> Vec<Bytes> {
        others.iter().map(|it| it.list.clone().into()).collect()
    }

    #[test]
    fn a_worker_that_serves_any_name_has_no_list() {
        assert!(ServedNames::of(&Interest::stream()).is_none());
    }

    #[test]
    fn differences_are_named_in_both_directions_once() {
        let (one, other) = (serving(&["b", "a"]), serving(&["c", "b"]));
        assert_eq!(one.list(), "task a\ntask b\n");
        let others = lists(&[&other, &serving(&["a", "b"])]);
        let expected = "workers of this group serve `task c`, which this one does not; this worker \
                        serves `task a`, which others of this group do not";
        assert_eq!(one.compare(&others).as_deref(), Some(expected));
        assert_eq!(one.compare(&others), None);
        let more = serving(&["a", "b", "d"]);
        let expected = "workers of this group serve `task d`, which this one does not";
        assert_eq!(one.compare(&lists(&[&more])).as_deref(), Some(expected));
    }

    #[test]
    fn five_names_are_shown_and_the_others_counted() {
        let (one, other) = (serving(&[]), serving(&["a", "b", "c", "d", "e", "f", "g"]));
        let text = one.compare(&lists(&[&other])).unwrap();
        assert!(text.contains("`task e` and 2 more"), "{text}");
        assert!(!text.contains("`task f`"), "{text}");
        let text = one.compare(&["task \x1b[2J\n".into()]).unwrap();
        assert!(text.contains("`task \\u{1b}[2J`"), "{text}");
    }

    #[test]
    fn a_long_list_is_cut_and_says_nothing_about_names_that_were_left_out() {
        let many: Vec<_> = (0..1_000)
            .map(|n| format!("name-{n:04}-{}", "x".repeat(20)))
            .collect();
        let many: Vec<_> = many.iter().map(String::as_str).collect();
        let (long, short) = (serving(&many), serving(&[many[0], many[999], "z"]));
        assert!(long.list().len() <= MAX_LIST_BYTES + 100 && long.list().ends_with(INCOMPLETE));
        let text = short.compare(&lists(&[&long])).unwrap();
        assert!(!text.contains("this worker serves"), "{text}");
        let text = long.compare(&lists(&[&short])).unwrap();
        assert!(!text.contains("workers of this group serve"), "{text}");
    }
}
