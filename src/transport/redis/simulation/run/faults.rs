//! The injection of faults.

use std::sync::Mutex;

use super::{
    super::{
        ledger::{Ledger, ProcessId},
        locations::STREAMS,
        network::{Outage, SlowLink},
        scenario::Fault,
        server::ClientId,
    },
    FailOver, Simulation, WorkerSlot,
};
use crate::sync::lock;

impl Simulation {
    /// Injects a fault. If the fault waits for a command, adds it to `armed` instead.
    pub(super) fn inject(&mut self, fault: Fault) {
        lock(&self.ledger).note("simulation", format_args!("{fault:?}"));
        let now = self.now;
        match fault {
            Fault::Crash {
                worker,
                unnoticed,
                restart_after,
            } => {
                let slot = &mut self.slots[worker];
                if unnoticed {
                    self.unnoticed.insert(slot.worker);
                }
                slot.crash(now + restart_after, &self.ledger);
            }
            Fault::Freeze {
                worker,
                threads,
                time,
            } => {
                let slot = &mut self.slots[worker];
                lock(&self.ledger).record_disturbed_until(slot.worker, now + time);
                if let Some(node) = &mut slot.node {
                    threads
                        .iter()
                        .for_each(|thread| node.freeze(*thread, now + time));
                }
            }
            Fault::Reset { worker, connection } => {
                let worker = self.slots[worker].worker;
                lock(&self.ledger).record_disturbed_until(worker, now);
                let mut network = lock(&self.network);
                let connections = network.connections_of(Some(worker));
                if let Some(client) = connections.get(connection % connections.len().max(1)) {
                    network.reset(*client, now, &mut self.rng);
                }
            }
            Fault::CutOff {
                worker,
                time,
                to_server,
                to_worker,
            } => {
                let worker = self.slots[worker].worker;
                lock(&self.ledger).record_disturbed_until(worker, now + time);
                lock(&self.network).cut_off(
                    worker,
                    Outage {
                        until: now + time,
                        to_server,
                        to_worker,
                    },
                );
            }
            Fault::SlowLink {
                worker,
                time,
                bytes_per_second,
            } => {
                let worker = self.slots[worker].worker;
                // The last bytes may arrive a few seconds after the end of the slow period.
                lock(&self.ledger).record_disturbed_until(worker, now + time + 5_000);
                let slow = SlowLink {
                    until: now + time,
                    bytes_per_second,
                };
                lock(&self.network).set_slow(worker, slow);
            }
            Fault::Replace {
                worker,
                restart_after,
            } => {
                let slot = &mut self.slots[worker];
                slot.restart_at = now + restart_after;
                slot.shut_down(&self.ledger);
            }
            Fault::StallBefore { .. } | Fault::LoseResponse { .. } | Fault::CrashAfter { .. } => {
                self.armed.push(fault);
            }
            Fault::ClockStep { by } => {
                self.clock_skew += by;
                lock(&self.ledger).server_clock_stepped(by);
            }
            Fault::FailOver {
                writes,
                time,
                clock,
            } => {
                // There is one replica, so a second failover during the first one has no effect.
                if self.failover.is_none() {
                    self.server.stop_replica();
                    lock(&self.ledger).replica_stopped();
                    self.failover = Some(FailOver {
                        writes,
                        time,
                        clock,
                    });
                }
            }
            Fault::LoseNotices { time } => self.server.notices.lost_until = now + time,
            Fault::DelayNotices { time } => self.server.notices.late_until = now + time,
            Fault::DoubleNotices { time } => self.server.notices.double_until = now + time,
            Fault::Unreadable { stream, time } => {
                lock(&self.ledger).record_unreadable_until(stream, now + time);
                let unreadable = &mut self.server.data.unreadable;
                unreadable.insert(STREAMS[stream].into(), now + time);
            }
            Fault::RefuseRead { stream } => {
                let refused = &mut self.server.data.refuses_next_read;
                refused.insert(STREAMS[stream].into());
            }
            Fault::Stall { time } => {
                lock(&self.ledger).unreachable_until = now + time;
                lock(&self.network).stalled_until = now + time;
            }
            Fault::Restart { time } => {
                lock(&self.ledger).unreachable_until = now + time;
                let mut network = lock(&self.network);
                for client in network.connections_of(None) {
                    network.reset(client, now, &mut self.rng);
                }
                network.stalled_until = now + time;
                network.refuse_until(now + time);
                self.server.restart();
                self.held_command = None;
            }
        }
    }

    /// Promotes the replica.
    pub(super) fn fail_over(&mut self, failover: FailOver) {
        let until = self.now + failover.time;
        {
            let mut ledger = lock(&self.ledger);
            ledger.note("simulation", "the replica is promoted");
            ledger.failed_over();
            ledger.unreachable_until = until;
            ledger.server_clock_stepped(failover.clock);
        }
        {
            let mut network = lock(&self.network);
            network.lose_all();
            network.stalled_until = until;
            network.refuse_until(until);
        }
        self.server.fail_over();
        self.clock_skew += failover.clock;
        self.buffers.clear();
        self.held_command = None;
    }

    /// Takes the first armed fault that matches.
    fn take_armed<T>(&mut self, matches: impl Fn(&Fault) -> Option<T>) -> Option<T> {
        let mut armed = self.armed.iter().enumerate();
        let (at, found) = armed.find_map(|(at, fault)| Some((at, matches(fault)?)))?;
        self.armed.remove(at);
        Some(found)
    }

    /// Returns `true` if the server stalls before it runs this command.
    pub(super) fn stalls_before(&mut self, args: &[Vec<u8>]) -> bool {
        if self.armed.is_empty() {
            return false;
        }
        let kind = self.server.kind(args).to_owned();
        let time = self.take_armed(|fault| match fault {
            Fault::StallBefore { kind: of, time } if kind.starts_with(of) => Some(*time),
            _ => None,
        });
        if let Some(time) = time {
            self.inject(Fault::Stall { time });
        }
        time.is_some()
    }

    /// Returns `true` if an armed fault loses the response to this command. If so, resets the
    /// connection, and kills the process if the fault says so.
    pub(super) fn loses_response(
        &mut self,
        client: ClientId,
        owner: ProcessId,
        kind: &str,
    ) -> bool {
        let restart_after = self.take_armed(|fault| match fault {
            Fault::LoseResponse { kind: of } if kind.starts_with(of) => Some(None),
            Fault::CrashAfter {
                kind: of,
                restart_after,
            } if kind.starts_with(of) => Some(Some(*restart_after)),
            _ => None,
        });
        let Some(restart_after) = restart_after else {
            return false;
        };
        let mut ledger = lock(&self.ledger);
        ledger.note(
            "simulation",
            format_args!("the response to w{owner} is lost"),
        );
        ledger.record_disturbed_until(owner, self.now);
        drop(ledger);
        lock(&self.network).reset(client, self.now, &mut self.rng);
        let slot = self.slots.iter_mut().find(|slot| slot.worker == owner);
        if let (Some(restart_after), Some(slot)) = (restart_after, slot) {
            slot.crash(self.now + restart_after, &self.ledger);
        }
        true
    }
}

impl WorkerSlot {
    /// Tells the process to shut down gracefully.
    pub(super) fn shut_down(&self, ledger: &Mutex<Ledger>) {
        self.stop.send_replace(true);
        if let Some(process) = lock(ledger).workers.get_mut(&self.worker) {
            process.stopping = true;
        }
    }

    /// Kills the process. Another process starts at `restart_at`.
    pub(super) fn crash(&mut self, restart_at: u64, ledger: &Mutex<Ledger>) {
        if self.node.take().is_some() {
            let mut ledger = lock(ledger);
            ledger.note(format_args!("w{}", self.worker), "is killed");
            ledger.process_ended(self.worker);
            self.restart_at = restart_at;
        }
    }
}
