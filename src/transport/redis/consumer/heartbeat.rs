//! Heartbeats, by which the members of a group detect dead members.
//!
//! Each member increments its counter in a hash, and reads the counters of the others. A member is
//! dead if its counter has not changed for a lease. The observer measures this time on its own
//! clock, so clocks are never compared. A member that cannot increment its counter considers itself
//! dead a little before a lease has passed. So it knows of its death before the others do. The
//! heartbeats run on the thread of the upkeep, so a handler that blocks its thread for a moment
//! does not stop them.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex},
    time::Duration,
};

use super::{
    canary::Canary,
    member::Member,
    upkeep::{StopSignals, spawn_on_upkeep},
    upkeep_connection::{UpkeepConnection, UpkeepPipeline},
};
use crate::{
    error::Error,
    sync::lock,
    transport::{
        Counters,
        redis::{
            pipeline::{Pipeline, SILENCE},
            response::{Value, array, bytes, unexpected},
            scripts,
            server::{Connector, Outage},
        },
    },
};
use tokio::{
    sync::watch,
    time::{Instant, MissedTickBehavior, interval},
};

/// The members of a group, as one member observes them.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct LiveMembers {
    /// The live members, sorted by name. Empty while this member considers itself dead.
    pub(super) live: Vec<String>,
    /// The dead members, sorted by name.
    pub(super) dead: Vec<String>,
    /// The number of times that this member considered itself dead, or was deleted by others as
    /// dead. Each death ends all terms that the member began earlier.
    pub(super) deaths: u64,
}

/// Sends the heartbeats of one member, and publishes the members that it observes.
pub(super) struct Heartbeats {
    member: Arc<Member>,
    connector: Connector,
    key: String,
    observed: ObservedCounters,
    members: watch::Sender<LiveMembers>,
    outage: Outage,
}

impl Heartbeats {
    pub(super) fn new(member: Arc<Member>, connector: Connector, key: String) -> Self {
        let observed = ObservedCounters::new(member.consumer.clone(), member.lease);
        Self {
            member,
            connector,
            key,
            observed,
            members: watch::Sender::default(),
            outage: Outage::default(),
        }
    }

    pub(super) fn members(&self) -> watch::Receiver<LiveMembers> {
        self.members.subscribe()
    }

    /// Sends the first heartbeat, over a connection of the handle.
    pub(super) async fn send_first(&mut self, pipeline: &Pipeline) -> Result<(), Error> {
        let address = self.connector.address();
        let server = UpkeepConnection::new(pipeline.for_key(&self.key), SILENCE, address);
        self.beat(&server).await
    }

    /// Starts to send heartbeats on the thread of the upkeep, until the source is dropped or leaves
    /// the group. No heartbeat is sent while the application's runtime is stalled.
    pub(super) fn start(
        mut self,
        pipeline: UpkeepPipeline,
        counters: Arc<Counters>,
        canary: Arc<Canary>,
        stop_signals: StopSignals,
    ) -> Result<(), Error> {
        spawn_on_upkeep(async move {
            let _ended = stop_signals.ended.clone().drop_guard();
            let lease = self.member.lease;
            let key = Some(self.key.as_str());
            let server = pipeline.connection(&self.connector, &counters, lease, key);
            let mut ticks = interval(self.member.interval());
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            let beats = async {
                loop {
                    ticks.tick().await;
                    if canary.stalled_for().is_none() {
                        match self.beat(&server).await {
                            Ok(()) => self.outage.record_success(),
                            Err(error) => {
                                let address = self.connector.address();
                                self.outage.record_failed_attempt(
                                    &address,
                                    "count a heartbeat",
                                    &error,
                                );
                            }
                        }
                    }
                    self.publish(Instant::now());
                }
            };
            tokio::select! {
                biased;
                () = stop_signals.closed.cancelled() => return,
                () = stop_signals.leaving.cancelled() => {}
                () = beats => {}
            }
            self.leave(&server).await;
        })
    }

    /// Deletes this member's counter, so that the other members need not wait for a lease before
    /// they take its partitions.
    async fn leave(&self, server: &UpkeepConnection) {
        let mut cmd = redis::cmd("HDEL");
        cmd.arg(&self.key).arg(&self.member.consumer);
        if let Err(error) = server.command(cmd).await {
            let error = error.chain();
            tracing::debug!(
                error,
                "this member stays listed until the others take it for dead"
            );
        }
    }

    /// Sends one heartbeat, and deletes members that have died.
    async fn beat(&mut self, server: &UpkeepConnection) -> Result<(), Error> {
        let sent_at = Instant::now();
        let dead = self.observed.listed_dead(sent_at);
        let me = &self.member.consumer;
        let args = |cmd: &mut redis::Cmd| {
            cmd.arg(me);
            for (member, heartbeats) in &dead {
                cmd.arg(member).arg(*heartbeats);
            }
        };
        let keys = [self.key.as_str()];
        let response = server.script(&scripts::MEMBER_HEARTBEAT, &keys, args);
        let heartbeats = decode_heartbeats(response.await?)?;
        self.observed.note(heartbeats, sent_at, Instant::now());
        self.publish(Instant::now());
        Ok(())
    }

    /// Publishes the members if they have changed.
    fn publish(&mut self, now: Instant) {
        let members = self.observed.members(now);
        self.members.send_if_modified(|before| {
            let is_new = *before != members;
            *before = members;
            is_new
        });
    }
}

/// Decodes the hash of counters.
fn decode_heartbeats(response: Value) -> Result<BTreeMap<String, u64>, Error> {
    let mut texts = array(response)?.into_iter().map(|text| {
        let text = bytes(text)?;
        Ok::<_, Error>(String::from_utf8_lossy(&text).into_owned())
    });
    let mut heartbeats = BTreeMap::new();
    while let Some(member) = texts.next().transpose()? {
        let number: Option<String> = texts.next().transpose()?;
        let number = number.and_then(|number| number.parse().ok());
        let number = number.ok_or_else(|| unexpected("a number of heartbeats", "another text"))?;
        heartbeats.insert(member, number);
    }
    Ok(heartbeats)
}

/// The counters that one member has observed.
#[derive(Debug)]
struct ObservedCounters {
    me: String,
    lease: Duration,
    /// For each member: its counter, and the time at which this value was first seen.
    seen: HashMap<String, (u64, Instant)>,
    /// The members in the last response.
    listed: Vec<String>,
    /// The time at which this member's last confirmed heartbeat was sent. `None` before the first
    /// one, and while this member considers itself dead.
    last_confirmed: Option<Instant>,
    /// See [`LiveMembers::deaths`].
    deaths: u64,
}

impl ObservedCounters {
    fn new(me: String, lease: Duration) -> Self {
        Self {
            me,
            lease,
            seen: HashMap::new(),
            listed: Vec::new(),
            last_confirmed: None,
            deaths: 0,
        }
    }

    /// Records the response to a heartbeat that was sent at `sent_at`.
    fn note(&mut self, heartbeats: BTreeMap<String, u64>, sent_at: Instant, now: Instant) {
        let own = heartbeats.get(&self.me).copied().unwrap_or_default();
        // The counter has restarted, so the others have considered this member dead and deleted it.
        let was_deleted = self.last_confirmed.is_some() && own <= 1;
        if was_deleted {
            self.deaths += 1;
        }
        self.last_confirmed = Some(sent_at);
        self.listed = heartbeats.keys().cloned().collect();
        for (member, heartbeats) in heartbeats {
            let seen = self.seen.entry(member).or_insert((heartbeats, now));
            if seen.0 != heartbeats {
                *seen = (heartbeats, now);
            }
        }
        // Dead members are kept for some time, since they may still be recorded as owners.
        let keep_for = 20 * self.lease;
        self.seen
            .retain(|_, (_, since)| now.saturating_duration_since(*since) < keep_for);
    }

    fn is_dead(&self, member: &str, now: Instant) -> bool {
        let seen = self.seen.get(member);
        member != self.me
            && seen.is_some_and(|(_, since)| now.saturating_duration_since(*since) >= self.lease)
    }

    /// Returns the dead members that are still listed, with their counters.
    fn listed_dead(&self, now: Instant) -> Vec<(String, u64)> {
        let dead = self
            .listed
            .iter()
            .filter(|member| self.is_dead(member, now));
        dead.filter_map(|member| Some((member.clone(), self.seen.get(member)?.0)))
            .collect()
    }

    /// Returns the members as observed at `now`. Records the death of this member if its last
    /// confirmed heartbeat is too old.
    fn members(&mut self, now: Instant) -> LiveMembers {
        // The others wait for a whole lease after they saw the last heartbeat. This member gives up
        // earlier, before the others take its partitions.
        let is_late = self
            .last_confirmed
            .is_some_and(|last| now.saturating_duration_since(last) >= self.lease * 9 / 10);
        if is_late {
            self.last_confirmed = None;
            self.deaths += 1;
        }
        if self.last_confirmed.is_none() {
            return LiveMembers {
                deaths: self.deaths,
                ..LiveMembers::default()
            };
        }
        let live = self
            .listed
            .iter()
            .filter(|member| !self.is_dead(member, now));
        let mut dead: Vec<_> = self
            .seen
            .keys()
            .filter(|member| self.is_dead(member, now))
            .cloned()
            .collect();
        dead.sort();
        LiveMembers {
            live: live.cloned().collect(),
            dead,
            deaths: self.deaths,
        }
    }
}

/// The recorded owners of partitions that are missing among the live members, each with the time at
/// which it was first missing. After a lease such an owner is dead, since a live member would have
/// listed itself again.
#[derive(Debug, Default)]
pub(super) struct MissingOwners(Mutex<HashMap<String, Instant>>);

impl MissingOwners {
    /// Records the owner of a partition if it is not among the live members. If the owner is live,
    /// removes its record.
    pub(super) fn note(&self, owner: &str, members: &LiveMembers) {
        let mut missing = lock(&self.0);
        match members.live.iter().any(|member| member == owner) {
            true => drop(missing.remove(owner)),
            false => drop(missing.entry(owner.to_owned()).or_insert_with(Instant::now)),
        }
    }

    /// Returns the owners that were not among the live members for a lease.
    pub(super) fn dead(&self, lease: Duration) -> Vec<String> {
        let mut missing = lock(&self.0);
        // Names are unique, so a dead owner never comes back and can be forgotten after some time.
        missing.retain(|_, since| since.elapsed() < 20 * lease);
        let dead = missing.iter().filter(|(_, since)| since.elapsed() >= lease);
        dead.map(|(owner, _)| owner.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn beats(pairs: &[(&str, u64)]) -> BTreeMap<String, u64> {
        pairs
            .iter()
            .map(|(name, number)| ((*name).to_owned(), *number))
            .collect()
    }

    #[test]
    fn a_member_without_a_heartbeat_for_a_lease_is_dead() {
        let start = Instant::now();
        let at = |seconds| start + seconds * SECOND;
        let mut observed = ObservedCounters::new("me".into(), 10 * SECOND);
        for second in 0..=9 {
            let number = u64::from(second);
            observed.note(
                beats(&[("me", number + 1), ("a", number), ("b", 7)]),
                at(second),
                at(second),
            );
            let members = observed.members(at(second));
            assert_eq!(members.live, ["a", "b", "me"], "second {second}");
        }
        observed.note(beats(&[("me", 11), ("a", 9), ("b", 7)]), at(10), at(10));
        let members = observed.members(at(10));
        assert_eq!(
            (members.live.len(), &members.dead[..]),
            (2, &["b".to_owned()][..])
        );
        assert_eq!(observed.listed_dead(at(10)), [("b".to_owned(), 7)]);
        observed.note(beats(&[("me", 12), ("a", 10)]), at(11), at(11));
        assert_eq!(
            observed.members(at(11)).dead,
            ["b"],
            "it stays dead when it is deleted"
        );
    }

    #[test]
    fn a_member_takes_itself_for_dead_before_others_do_and_when_it_was_deleted() {
        let start = Instant::now();
        let at = |seconds| start + seconds * SECOND;
        let mut observed = ObservedCounters::new("me".into(), 10 * SECOND);
        observed.note(beats(&[("me", 1)]), at(0), at(0));
        assert_eq!(observed.members(at(8)).deaths, 0);
        let late = observed.members(at(9));
        assert_eq!((late.deaths, late.live.len()), (1, 0));
        observed.note(beats(&[("me", 2)]), at(12), at(12));
        assert_eq!(observed.members(at(12)).deaths, 1);
        observed.note(beats(&[("me", 1)]), at(13), at(13));
        assert_eq!(observed.members(at(13)).deaths, 2);
    }
}
