//! Encodes the follow-ups of a delivery for the script that ends it.

use std::sync::Arc;

use bytes::Bytes;
use redis::Cmd;
use tokio::sync::Notify;

use super::{
    reply_to::ReplyRoute,
    settlement::{End, Unsettled, task_args},
    settler::{Settler, reply_args},
    streams::ServedStream,
};
use crate::{
    error::Error,
    message::{Due, FollowUp, Kind, Message, Name, Write},
    transport::{
        TaskOutcome,
        redis::{
            Redis,
            keys::{self, Keys},
            pipeline::{Resend, Submit},
            producer::{
                event_channel,
                schedule::{AcceptCall, check_headers},
            },
            response::{bytes, fixed_array, integer},
            scripts,
            server::HashSlot,
        },
    },
};

/// Encodes and sends the follow-ups of one consumer's deliveries.
pub(super) struct FollowUpContext {
    /// A handle with the source's settings and connections.
    pub(super) redis: Redis,
    /// Notified after a task for a stream in another slot was added to an outbox.
    pub(super) forwards: Arc<Notify>,
}

/// The follow-ups of a delivery, as keys and arguments of the script `COMPLETE`.
#[derive(Debug, Default)]
pub(super) struct EncodedFollowUps {
    pub(super) keys: Vec<String>,
    pub(super) args: Vec<Bytes>,
    /// The number of tasks and events among the follow-ups.
    pub(super) messages: u64,
    /// The streams to which the tasks are sent. They may have to be registered first.
    pub(super) targets: Vec<Name>,
    /// The delayed tasks, which a timer of this worker moves to their streams when they are due.
    pub(super) delayed: Vec<(Keys, Due)>,
    /// Set if a task is for a stream in another slot.
    pub(super) has_forwards: bool,
}

impl FollowUpContext {
    /// Encodes the follow-ups of a delivery from this stream.
    ///
    /// # Errors
    /// If a task cannot be sent to its stream.
    pub(super) fn encode(
        &self,
        stream: &ServedStream,
        follow_ups: Vec<FollowUp>,
    ) -> Result<EncodedFollowUps, Error> {
        let mut encoded = EncodedFollowUps::default();
        for follow_up in follow_ups {
            match follow_up {
                FollowUp::Outgoing(message) if message.kind() == Kind::Event => {
                    let channel = event_channel(&self.redis.options, message.name());
                    let channel = Bytes::copy_from_slice(channel.as_bytes());
                    encoded.push("publish", &[], vec![channel, message.payload().clone()]);
                    encoded.messages += 1;
                }
                FollowUp::Outgoing(message) => {
                    self.add_task(&mut encoded, stream, message)?;
                    encoded.messages += 1;
                }
                FollowUp::Write { key, write } => {
                    let (kind, args) = match write {
                        Write::Increment(by) => ("increment", vec![by.to_string().into()]),
                        Write::Set(value) => ("set", vec![value]),
                        Write::Delete => ("delete", vec![]),
                    };
                    encoded.push(kind, &[stream.keys.value(key)], args);
                }
            }
        }
        Ok(encoded)
    }

    fn add_task(
        &self,
        encoded: &mut EncodedFollowUps,
        stream: &ServedStream,
        mut message: Message,
    ) -> Result<(), Error> {
        let Redis {
            settings,
            options,
            shared,
            ..
        } = &self.redis;
        check_headers(&message)?;
        settings.choose_partition(message.parts_mut())?;
        let target = message.parts().to.clone();
        let target = target.unwrap_or_else(|| stream.keys.stream.clone());
        keys::check(&options.namespace, &target)?;
        let keys = Keys::new(&options.namespace, &target, &settings.group)?;
        let due = message.parts().due;
        let accept = AcceptCall::new(&keys, settings.idempotency_window, message);
        let slot = |keys: &Keys| HashSlot::of(keys.stream_key.as_bytes());
        // The script cannot write to another slot, so the outbox takes the task.
        if shared.connector.is_cluster() && slot(&keys) != slot(&stream.keys) {
            let mut args = Vec::new();
            accept.forward_args(&target, |arg| args.push(Bytes::copy_from_slice(arg)));
            encoded.push("forward", &[stream.keys.outbox()], args);
            encoded.has_forwards = true;
        } else {
            let mut args = Vec::new();
            accept.args(|arg| args.push(Bytes::copy_from_slice(arg)));
            encoded.push("task", accept.keys(), args);
            encoded.delayed.extend(due.map(|due| (keys, due)));
        }
        encoded.targets.push(target);
        Ok(())
    }
}

impl EncodedFollowUps {
    /// Appends a follow-up to `keys` and `args`.
    fn push(&mut self, kind: &'static str, keys: &[String], args: Vec<Bytes>) {
        self.args.push(Bytes::from_static(kind.as_bytes()));
        self.args.push(keys.len().to_string().into());
        self.args.push(args.len().to_string().into());
        self.args.extend(args);
        self.keys.extend_from_slice(keys);
    }
}

impl Settler {
    /// Ends a delivery as done and carries out its follow-ups, in one script call. If a follow-up
    /// is refused, the delivery becomes a dead letter.
    pub(super) async fn complete(
        &self,
        delivery: &Unsettled,
        (follow_ups, outcome): (EncodedFollowUps, &TaskOutcome),
        reply: Option<(ReplyRoute, Vec<u8>)>,
    ) -> Result<(), Error> {
        let FollowUpContext { redis, forwards } = &*self.follow_ups;
        for target in &follow_ups.targets {
            if let Some(registration) = redis.registration(target) {
                registration.await?;
            }
        }
        let submit = || self.submit_complete(delivery, (&follow_ups, outcome), reply.as_ref());
        let response = match self.retry_while_refused(&delivery.stream, submit).await {
            // Redis checks permissions before it runs the script, so the script has had no effect.
            Err(error) if error.is_refused() => {
                return self.end_as_refused(delivery, &error.chain(), reply).await;
            }
            response => response?,
        };
        let [outcome, answered, reason] = fixed_array(response)?;
        match integer(&outcome)? {
            1 => {}
            // The script has refused a follow-up.
            2 => {
                let reason = bytes(reason)?;
                let reason = String::from_utf8_lossy(&reason);
                return self.end_as_refused(delivery, &reason, reply).await;
            }
            _ => {
                self.report_fenced_out(delivery);
                return Ok(());
            }
        }
        if reply.is_some() && integer(&answered)? == 0 {
            self.report.unanswerable(delivery.origin);
        }
        self.report.counters.done.increment();
        self.report.counters.sent.add(follow_ups.messages);
        if follow_ups.has_forwards {
            forwards.notify_one();
        }
        for (keys, due) in follow_ups.delayed {
            redis.promote_soon(keys, Some(due));
        }
        Ok(())
    }

    /// Ends a delivery as a dead letter, because the server has refused a follow-up.
    async fn end_as_refused(
        &self,
        delivery: &Unsettled,
        reason: &str,
        reply: Option<(ReplyRoute, Vec<u8>)>,
    ) -> Result<(), Error> {
        tracing::warn!(
            id = %delivery.origin, stream = %delivery.stream.keys.stream, reason,
            "a follow-up was refused; its task becomes a dead letter"
        );
        let (reason, error) = FollowUp::refusal(reason);
        let reply = delivery.reply_to.as_ref().zip(reply);
        let reply = reply.map(|(to, (route, _))| (route, to.envelope(&Err(error))));
        let outcome = TaskOutcome::default();
        let end = (End::DeadLetter(reason), &outcome);
        self.end(delivery, end, reply).await
    }

    fn submit_complete(
        &self,
        delivery: &Unsettled,
        (follow_ups, outcome): (&EncodedFollowUps, &TaskOutcome),
        reply: Option<&(ReplyRoute, Vec<u8>)>,
    ) -> Submit {
        let mut keys = vec![delivery.stream.key_of(delivery.guard.delivery_key.0)];
        let (channel, envelope) = reply_args(reply, &mut keys);
        let other_keys = keys.len();
        keys.extend(follow_ups.keys.iter().map(String::as_str));
        let args = |cmd: &mut Cmd| {
            self.member
                .add_fence_args(cmd, delivery.guard.delivery_key)
                .arg(envelope)
                .arg(channel)
                .arg(other_keys)
                .arg(delivery.stream.keys.base());
            task_args(delivery, outcome, cmd);
            for arg in &follow_ups.args {
                cmd.arg(&arg[..]);
            }
        };
        let (script, resend) = (&scripts::COMPLETE, Resend::UntilAnswered);
        self.pipeline.submit_script(script, &keys, args, resend)
    }
}
