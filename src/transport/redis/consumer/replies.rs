//! Stores replies to reliable requests. One script call stores a batch of replies and acknowledges
//! their requests.

use std::sync::Arc;

use futures_util::future::join_all;
use redis::Cmd;

use super::{
    settlement::{Settlement, StoredReply},
    settler::{Settler, by_stream},
    streams::ServedStream,
};
use crate::{
    error::Error,
    transport::redis::{
        entry::{StreamEntryId, WhichStream},
        error::{self, LEAST_SIZE_LIMIT},
        pipeline::Resend,
        response::{Value, array, integer, wrong_length},
        scripts,
    },
};

/// The maximum number of replies that one call stores. Bounded, since a script blocks the server.
const MAX_BATCH: usize = 64;

/// The maximum number of bytes of replies that one call stores. Only a single large reply may
/// exceed the maximum. The replies to one client are one argument, and no server refuses an
/// argument of this size.
const MAX_BYTES: usize = LEAST_SIZE_LIMIT / 2;

/// The settlement of a handled request with its reply.
pub(super) type ReplySettlement = Settlement<StoredReply>;

/// Stores replies in calls of a bounded size.
pub(super) async fn store(settler: &Settler, batch: Vec<ReplySettlement>) {
    let calls = by_stream(batch).into_iter().flat_map(split_batch);
    join_all(calls.map(|batch| store_part(settler, batch))).await;
}

/// Splits a batch into parts of at most [`MAX_BATCH`] replies and [`MAX_BYTES`] bytes. A larger
/// reply is a part by itself.
fn split_batch(batch: Vec<ReplySettlement>) -> Vec<Vec<ReplySettlement>> {
    let mut parts: Vec<Vec<ReplySettlement>> = Vec::new();
    let mut room = 0;
    for reply in batch {
        let bytes = reply.effect.envelope.len() + 1;
        match parts.last_mut() {
            Some(part) if bytes <= room && part.len() < MAX_BATCH => {
                room -= bytes;
                part.push(reply);
            }
            _ => {
                room = MAX_BYTES.saturating_sub(bytes);
                parts.push(vec![reply]);
            }
        }
    }
    parts
}

/// Stores the replies of one part by one call. If the server refuses the call, stores each reply by
/// a separate call, so that one refused reply does not fail the others.
async fn store_part(settler: &Settler, batch: Vec<ReplySettlement>) {
    let Err((batch, error)) = make_call(settler, batch).await else {
        return;
    };
    if !error.is_refused() {
        return fail(batch, &error);
    }
    let several = batch.len() > 1;
    join_all(batch.into_iter().map(async |mut reply| {
        let mut refusal = None;
        // The server may have refused the call because of another reply.
        if several {
            match make_call(settler, vec![reply]).await {
                Ok(()) => return,
                Err((mut batch, error)) => {
                    reply = batch.pop().expect("the one that was tried");
                    refusal = Some(error);
                }
            }
        }
        // If this reply itself is refused, stores its fallback: an error for the client.
        let refusal = refusal.as_ref().unwrap_or(&error);
        let Some(fallback) = reply.effect.fallback.take() else {
            return fail(vec![reply], refusal);
        };
        tracing::warn!(
            id = %reply.delivery.origin,
            bytes = reply.effect.envelope.len(),
            error = refusal.chain(),
            "Redis refuses the reply to a request; its client gets an error"
        );
        reply.effect.envelope = fallback;
        if let Err((batch, error)) = make_call(settler, vec![reply]).await {
            fail(batch, &error);
        }
    }))
    .await;
}

/// Fails all settlements of a batch with the same error.
fn fail(batch: Vec<ReplySettlement>, error: &Error) {
    for reply in batch {
        reply.fail(error);
    }
}

/// Makes one call. On an error, returns the replies with the error.
async fn make_call(
    settler: &Settler,
    batch: Vec<ReplySettlement>,
) -> Result<(), (Vec<ReplySettlement>, Error)> {
    let call = ReplyCall::new(batch);
    let request = &call.request;
    let submit = || {
        let (resend, script) = (Resend::UntilAnswered, Some(&scripts::REPLY));
        (settler.pipeline).submit_owned(request.command(), resend, script)
    };
    match settler.retry_while_refused(&request.source, submit).await {
        Ok(response) => call.finish(settler, response),
        Err(error) => Err((call.into_replies(), error)),
    }
}

/// A call that stores replies and acknowledges their requests. All requests are from one stream.
pub(super) struct ReplyCall {
    /// The replies, sorted by client.
    replies: Vec<ReplySettlement>,
    request: ReplyRequest,
}

/// The arguments of the call.
struct ReplyRequest {
    /// The stream of the requests.
    source: Arc<ServedStream>,
    which: WhichStream,
    clients: Vec<ClientReplies>,
}

impl ReplyCall {
    pub(super) fn new(mut replies: Vec<ReplySettlement>) -> Self {
        replies.sort_by(|a, b| a.effect.stream.cmp(&b.effect.stream));
        let first = &replies[0].delivery;
        let request = ReplyRequest {
            source: first.stream.clone(),
            which: first.guard.delivery_key.0,
            clients: by_client(&replies).map(ClientReplies::new).collect(),
        };
        Self { replies, request }
    }

    /// Makes the `EVALSHA`.
    pub(super) fn command(&self) -> Cmd {
        self.request.command()
    }

    /// Confirms the settlements, or returns the replies with the error of the response.
    pub(super) fn finish(
        self,
        settler: &Settler,
        response: Value,
    ) -> Result<(), (Vec<ReplySettlement>, Error)> {
        let results = error::check(response).and_then(|it| decode(it, self.request.clients.len()));
        let results = match results {
            Ok(results) => results,
            Err(error) => return Err((self.replies, error)),
        };
        for (replies, result) in by_client(&self.replies).zip(results) {
            if result == 2 {
                for reply in replies {
                    settler.report.unanswerable(reply.delivery.origin);
                }
            }
        }
        settler.confirm_done(self.replies);
        Ok(())
    }

    pub(super) fn into_replies(self) -> Vec<ReplySettlement> {
        self.replies
    }
}

impl ReplyRequest {
    fn command(&self) -> Cmd {
        let Self {
            source,
            which,
            clients,
        } = self;
        let streams = clients.iter().map(|it| it.stream.as_str());
        let keys: Vec<_> = [source.key_of(*which)].into_iter().chain(streams).collect();
        scripts::REPLY.call(&keys, |cmd| {
            cmd.arg(source.keys.group.as_str()).arg(which.flag());
            for client in clients {
                cmd.arg(client.ids.len())
                    .arg(&client.ids)
                    .arg(&client.envelopes[..]);
            }
        })
    }
}

/// The replies to one client in one call.
struct ClientReplies {
    stream: String,
    ids: Vec<StreamEntryId>,
    /// The envelopes, one per line. An envelope contains no line break.
    envelopes: Vec<u8>,
}

impl ClientReplies {
    fn new(replies: &[ReplySettlement]) -> Self {
        let envelopes: Vec<_> = replies.iter().map(|it| &it.effect.envelope[..]).collect();
        let ids = replies.iter().map(|it| it.delivery.guard.delivery_key.1);
        Self {
            stream: replies[0].effect.stream.clone(),
            ids: ids.collect(),
            envelopes: envelopes.join(&b'\n'),
        }
    }
}

/// Groups replies by client. They must be sorted by their reply streams.
fn by_client(sorted: &[ReplySettlement]) -> impl Iterator<Item = &[ReplySettlement]> {
    sorted.chunk_by(|a, b| a.effect.stream == b.effect.stream)
}

/// Decodes the results of a call: one number for each client, as `reply.lua` defines them.
pub(super) fn decode(response: Value, clients: usize) -> Result<Vec<i64>, Error> {
    let results = array(response)?;
    if results.len() != clients {
        return Err(wrong_length(clients, results.len()));
    }
    results.iter().map(integer).collect()
}
