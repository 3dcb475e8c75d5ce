//! One request.

use std::sync::Arc;

use redis::Cmd;
use tokio::time::timeout_at;
use uuid::{Uuid, fmt::Hyphenated};

use super::{Hub, Pending};
use crate::{
    error::{Error, ErrorKind},
    message::{Deadline, Message, Name, ReplyMode},
    reply::Reply,
    transport::{
        Counters, codec,
        redis::{
            error,
            link::{Listener, Retry},
            send,
            value::Value,
        },
    },
};

impl Hub {
    /// Sends a request and waits for its reply.
    ///
    /// # Cancel safety
    /// Dropping the future frees the request's place at once. It may still be handled.
    pub(in crate::transport::redis) fn request(
        self: Arc<Self>,
        stream: &Name,
        mut message: Message,
    ) -> impl Future<Output = Result<Reply, Error>> + Send + use<> {
        let stream = stream.clone();
        let parts = message.parts_mut();
        // It travels, so that no worker starts what nobody waits for any more.
        let deadline = *parts
            .deadline
            .get_or_insert_with(|| Deadline::after(Deadline::OF_A_REQUEST));
        async move {
            let name = message.name().clone();
            let late = || {
                let text = format!("no reply to the request `{name}` came in time");
                Error::new(ErrorKind::Timeout, text)
            };
            if deadline.has_passed() {
                return Err(late());
            }
            let exchange = self.exchange(stream, message, deadline);
            match timeout_at(deadline.0, exchange).await {
                Ok(reply) => reply,
                Err(_) => Err(late()),
            }
        }
    }

    async fn exchange(
        &self,
        stream: Name,
        message: Message,
        deadline: Deadline,
    ) -> Result<Reply, Error> {
        let mode = message.parts().reply_mode;
        let mut subscribed = self.subscribed.clone();
        if mode == ReplyMode::Reliable {
            let mut ready = self.reply_stream(&stream)?;
            self.wait(&mut ready, mode, deadline.0).await?;
        }
        let place = loop {
            self.wait(&mut subscribed, mode, deadline.0).await?;
            if let Some(place) = self.pending.register(mode) {
                break place;
            }
            // The subscription was lost in between, or is just about to be announced.
            tokio::task::yield_now().await;
        };

        let cmd = self.entry(&stream, message, place.id());
        // Whether it was sent is told to its place, not to this task: that is woken once, by the
        // reply.
        let sent = Sent {
            id: place.id(),
            mode,
            pending: self.pending.clone(),
            counters: self.counters.clone(),
        };
        self.link.post(cmd, Retry::Never, sent).await;
        place.await
    }

    fn entry(&self, stream: &str, message: Message, id: Uuid) -> Cmd {
        let mut cmd = send::entry(stream, &message, self.channel.len() + 128);
        send::encode(&message, &mut cmd);
        cmd.arg(codec::REPLY_TO).arg(&self.channel);
        cmd.arg(codec::CORRELATION_ID).arg(&uuid_text(id)[..]);
        if message.parts().reply_mode == ReplyMode::Reliable {
            cmd.arg(codec::CLIENT).arg(&uuid_text(self.client)[..]);
        }
        cmd
    }
}

/// Tells a request's place when it could not be sent.
struct Sent {
    id: Uuid,
    mode: ReplyMode,
    pending: Arc<Pending>,
    counters: Arc<Counters>,
}

impl Listener for Sent {
    fn answered(self: Box<Self>, answer: Result<Value, Error>) {
        match answer.and_then(error::check) {
            Ok(_) => self.counters.sent.increment(),
            // It may well be under way, and its reply is kept for us: that will tell.
            Err(error) if error.is_unknown_outcome() && self.mode == ReplyMode::Reliable => {}
            Err(error) => self.pending.fail(self.id, error),
        }
    }

    fn is_gone(&self) -> bool {
        !self.pending.waits(self.id)
    }
}

/// The text of an id, without an allocation.
fn uuid_text(id: Uuid) -> [u8; Hyphenated::LENGTH] {
    let mut text = [0; Hyphenated::LENGTH];
    id.hyphenated().encode_lower(&mut text);
    text
}
