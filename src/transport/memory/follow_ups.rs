//! Carries out the follow-ups of a delivery together with its verdict.

use bytes::Bytes;
use foldhash::HashMap;

use super::{
    broker::{BrokerState, BrokerStream, stream_of, with_group},
    encode,
    group::DeliveryNumber,
};
use crate::{
    message::{FollowUp, Kind, MAX_INTEGER, Message, Name, Write},
    transport::{Settings, Verdict},
};

/// Follow-ups that were checked and can be carried out.
#[derive(Default)]
struct Prepared {
    tasks: Vec<(Name, Message)>,
    events: Vec<Message>,
    /// A copy of all values of the stream, with the changes. `None` if no value changes.
    values: Option<HashMap<String, Bytes>>,
}

impl BrokerState {
    /// Settles a delivery. If the delivery has succeeded and is still pending, its follow-ups are
    /// carried out in the same step. If a follow-up is refused, the message becomes a dead letter
    /// instead. `source` has the settings of the whole source, and `settings` those of the
    /// delivery's stream.
    pub(super) fn settle(
        &self,
        source: &Settings,
        settings: &Settings,
        serial: DeliveryNumber,
        mut verdict: Verdict,
    ) {
        let mut streams = self.streams();
        let follow_ups = match verdict {
            Verdict::Done(Ok(_)) => {
                with_group(&mut streams, &self.context, settings, |group, _| {
                    group.take_follow_ups(serial)
                })
            }
            _ => None,
        };
        let follow_ups = follow_ups.unwrap_or_default();
        // The follow-ups are checked first, because a refused follow-up changes the verdict.
        let stream = stream_of(&mut streams, &settings.stream);
        let prepared = prepare(source, settings, stream, follow_ups).unwrap_or_else(|reason| {
            let (reason, reply) = FollowUp::refusal(&reason);
            let answer = Some(reply);
            verdict = Verdict::DeadLetter { reason, answer };
            Prepared::default()
        });
        let settled = with_group(&mut streams, &self.context, settings, |group, _| {
            group.settle(serial, verdict, settings, &self.context)
        });
        // If the lease was lost, nothing is carried out.
        let Some(Some(entry)) = settled else {
            return;
        };
        for (target, message) in prepared.tasks {
            if let Some(registry) = &source.registry {
                self.registries.register(registry, &target);
            }
            let (parts, fields) = (message.parts(), encode(&message, None));
            let contents = stream_of(&mut streams, &target);
            // The task is not stored if another task has its idempotency key or its unique key.
            let _ = self.accept_on(&target, contents, source, parts, fields);
        }
        if let Some(values) = prepared.values {
            stream_of(&mut streams, &settings.stream).values = values;
        }
        // Events are published without the lock.
        drop(streams);
        for event in prepared.events {
            self.publish(&event);
        }
        // The memory of the entry is freed after the lock was released.
        drop(entry);
    }
}

/// Checks follow-ups, and computes the values after them. Changes nothing.
fn prepare(
    source: &Settings,
    settings: &Settings,
    stream: &BrokerStream,
    follow_ups: Vec<FollowUp>,
) -> Result<Prepared, String> {
    let mut prepared = Prepared::default();
    for follow_up in follow_ups {
        match follow_up {
            FollowUp::Outgoing(message) if message.kind() == Kind::Event => {
                prepared.events.push(message);
            }
            FollowUp::Outgoing(mut message) => {
                let chosen = source.choose_partition(message.parts_mut());
                chosen.map_err(|error| error.chain())?;
                let target = message.parts().to.clone();
                let target = target.unwrap_or_else(|| settings.stream.clone());
                prepared.tasks.push((target, message));
            }
            FollowUp::Write { key, write } => {
                let values = &mut prepared.values;
                let values = values.get_or_insert_with(|| stream.values.clone());
                match write {
                    Write::Increment(by) => {
                        let sum = parse_integer(values.get(&key)).map(|value| value + by);
                        let Some(sum) = sum.filter(|sum| sum.unsigned_abs() < MAX_INTEGER) else {
                            return Err(format!(
                                "the value of `{key}` is not an integer of at most 15 digits"
                            ));
                        };
                        values.insert(key, sum.to_string().into());
                    }
                    Write::Set(value) => {
                        values.insert(key, value);
                    }
                    Write::Delete => {
                        values.remove(&key);
                    }
                }
            }
        }
    }
    Ok(prepared)
}

/// Returns the integer that a value contains. A missing value counts as zero.
fn parse_integer(value: Option<&Bytes>) -> Option<i64> {
    let Some(value) = value else {
        return Some(0);
    };
    let number: i64 = std::str::from_utf8(value).ok()?.parse().ok()?;
    (number.unsigned_abs() < MAX_INTEGER).then_some(number)
}
