//! Sends one request.

use std::sync::Arc;

use tokio::time::timeout_at;
use uuid::{Uuid, fmt::Hyphenated};

use super::Hub;
use crate::{
    error::{Error, ErrorKind},
    message::{Deadline, Message, Name, ReplyMode},
    reply::Reply,
    sync::next_turn,
    transport::{
        codec,
        redis::{pipeline::Resend, producer::AddCommand},
    },
};

impl Hub {
    /// Sends a request to the stream `key`, which includes the namespace, and waits for the reply.
    ///
    /// # Cancel safety
    /// Dropping the future removes the request from this client. A worker may still handle it.
    pub(in crate::transport::redis) fn request(
        self: Arc<Self>,
        key: &Name,
        message: Message,
    ) -> impl Future<Output = Result<Reply, Error>> + Send + use<> {
        let key = key.clone();
        // The message carries the deadline to the worker, so that no worker starts a request whose
        // caller no longer waits.
        let deadline = message.parts().deadline.expect("the sender has set one");
        async move {
            let name = message.name().clone();
            let late = || {
                let text = format!("no reply to the request `{name}` came in time");
                Error::new(ErrorKind::Timeout, text)
            };
            if deadline.has_passed() {
                return Err(late());
            }
            let exchange = self.exchange(key, message, deadline);
            match timeout_at(deadline.0, exchange).await {
                Ok(reply) => reply,
                Err(_) => Err(late()),
            }
        }
    }

    /// Waits until the reply can be received, sends the request, and waits for the reply.
    async fn exchange(
        &self,
        key: Name,
        message: Message,
        deadline: Deadline,
    ) -> Result<Reply, Error> {
        let mode = message.parts().reply_mode;
        let mut channel_readiness = self.channel_readiness.clone();
        // The reply stream is read until this value is dropped.
        let mut outstanding = None;
        if mode == ReplyMode::Reliable {
            let registered = outstanding.insert(self.reply_readers.register(&key)?);
            // If the hub's runtime has ended, only the wait for the subscription fails immediately.
            // So that wait comes first.
            self.wait_until_ready(&mut channel_readiness, mode, deadline.0)
                .await?;
            self.wait_until_ready(&mut registered.readiness(), mode, deadline.0)
                .await?;
        }
        let reply = loop {
            self.wait_until_ready(&mut channel_readiness, mode, deadline.0)
                .await?;
            if let Some(reply) = self.pending.register(mode) {
                break reply;
            }
            // The subscription was lost between the wait and the registration.
            next_turn().await;
        };

        let (id, client) = (uuid_text(reply.id()), uuid_text(self.client));
        let reply_fields = [
            (codec::REPLY_TO, self.channel.as_bytes()),
            (codec::CORRELATION_ID, &id),
            (codec::CLIENT, &client),
        ];
        // Only a reliable request names its client, and with it the reply stream.
        let field_count = match mode {
            ReplyMode::Reliable => reply_fields.len(),
            ReplyMode::Fast => reply_fields.len() - 1,
        };
        let add = AddCommand {
            key: &key,
            message: &message,
            extra_fields: &reply_fields[..field_count],
        };
        // `self.pending` also receives the outcome of sending. So this future is woken only once,
        // by the reply or by a failure.
        let number = reply.id().as_u128();
        (self.pipeline.for_key(&key))
            .submit_with_handler(add, Resend::Never, &self.pending, number)
            .await;
        drop(message);
        reply.await
    }
}

/// Formats an id without an allocation.
fn uuid_text(id: Uuid) -> [u8; Hyphenated::LENGTH] {
    let mut text = [0; Hyphenated::LENGTH];
    id.hyphenated().encode_lower(&mut text);
    text
}
