//! How faults come about.

use std::sync::Mutex;

use super::{
    super::{
        book::{Book, WorkerId},
        network::{Outage, SlowLink},
        plan::Fault,
        server::Client,
    },
    Slot, World,
};
use crate::sync::lock;

impl World {
    /// Lets a fault happen, or wait for its moment.
    pub(super) fn befall(&mut self, fault: Fault) {
        lock(&self.book).note("world", format_args!("{fault:?}"));
        let now = self.now;
        match fault {
            Fault::Crash {
                worker,
                unnoticed,
                back,
            } => {
                let slot = &mut self.slots[worker];
                if unnoticed {
                    self.unnoticed.insert(slot.worker);
                }
                slot.crash(now + back, &self.book);
            }
            Fault::Freeze {
                worker,
                threads,
                time,
            } => {
                let slot = &mut self.slots[worker];
                lock(&self.book).troubled(slot.worker, now + time);
                if let Some(host) = &mut slot.host {
                    threads
                        .iter()
                        .for_each(|thread| host.freeze(*thread, now + time));
                }
            }
            Fault::Reset { worker, which } => {
                let worker = self.slots[worker].worker;
                lock(&self.book).troubled(worker, now);
                let mut network = lock(&self.network);
                let connections = network.of(Some(worker));
                if let Some(client) = connections.get(which % connections.len().max(1)) {
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
                lock(&self.book).troubled(worker, now + time);
                lock(&self.network).hold(
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
                // What was sent last may arrive a few seconds later.
                lock(&self.book).troubled(worker, now + time + 5_000);
                let slow = SlowLink {
                    until: now + time,
                    bytes_per_second,
                };
                lock(&self.network).slow_down(worker, slow);
            }
            Fault::Replace { worker, back } => {
                let slot = &mut self.slots[worker];
                slot.back = now + back;
                slot.stop.send_replace(true);
            }
            Fault::StallBefore { .. } | Fault::LoseAnswer { .. } | Fault::CrashAfter { .. } => {
                self.ambushes.push(fault);
            }
            Fault::ClockStep { by } => {
                self.skew += by;
                lock(&self.book).clock_stepped(by);
            }
            Fault::Stall { time } => {
                lock(&self.book).outage = now + time;
                lock(&self.network).stalled = now + time;
            }
            Fault::Restart { time } => {
                lock(&self.book).outage = now + time;
                let mut network = lock(&self.network);
                for client in network.of(None) {
                    network.reset(client, now, &mut self.rng);
                }
                network.stalled = now + time;
                network.refuse_until(now + time);
                self.server.restart();
                self.held = None;
            }
        }
    }

    /// Takes the first fault that has waited for this.
    fn ambush<T>(&mut self, hits: impl Fn(&Fault) -> Option<T>) -> Option<T> {
        let mut waiting = self.ambushes.iter().enumerate();
        let (at, hit) = waiting.find_map(|(at, fault)| Some((at, hits(fault)?)))?;
        self.ambushes.remove(at);
        Some(hit)
    }

    /// Whether the server stops before it carries this out.
    pub(super) fn stalls_before(&mut self, args: &[Vec<u8>]) -> bool {
        if self.ambushes.is_empty() {
            return false;
        }
        let kind = self.server.kind(args).to_owned();
        let time = self.ambush(|fault| match fault {
            Fault::StallBefore { kind: of, time } if kind.starts_with(of) => Some(*time),
            _ => None,
        });
        if let Some(time) = time {
            self.befall(Fault::Stall { time });
        }
        time.is_some()
    }

    /// Whether the answer to a command of this kind is lost, and its connection, or the process that
    /// waits for it.
    pub(super) fn loses_answer(&mut self, client: Client, owner: WorkerId, kind: &str) -> bool {
        let back = self.ambush(|fault| match fault {
            Fault::LoseAnswer { kind: of } if kind.starts_with(of) => Some(None),
            Fault::CrashAfter { kind: of, back } if kind.starts_with(of) => Some(Some(*back)),
            _ => None,
        });
        let Some(back) = back else {
            return false;
        };
        let mut book = lock(&self.book);
        book.note("world", format_args!("the answer to w{owner} is lost"));
        book.troubled(owner, self.now);
        drop(book);
        lock(&self.network).reset(client, self.now, &mut self.rng);
        let slot = self.slots.iter_mut().find(|slot| slot.worker == owner);
        if let (Some(back), Some(slot)) = (back, slot) {
            slot.crash(self.now + back, &self.book);
        }
        true
    }
}

impl Slot {
    /// Kills the process.
    pub(super) fn crash(&mut self, back: u64, book: &Mutex<Book>) {
        if self.host.take().is_some() {
            let mut book = lock(book);
            book.note(format_args!("w{}", self.worker), "is killed");
            book.gone(self.worker);
            self.back = back;
        }
    }
}
