//! Settles the deliveries of the last read in one exchange over the connection that reads.

use std::mem;

use super::{
    replies::ReplyCall,
    settlement::{Effect, PublishedReply, Settlement},
    settler::{Settler, by_stream, xack},
};
use crate::transport::redis::{
    connection::Commands, error, producer::PublishCommand, response::Value,
};

/// Settlements, and the commands that carry them out.
pub(super) struct Exchange {
    commands: Commands,
    /// The deliveries of each `XACK`. These commands follow the commands that publish replies.
    acknowledgements: Vec<Vec<Settlement<Option<PublishedReply>>>>,
    /// The calls that store replies. Their commands are the last commands.
    reply_calls: Vec<ReplyCall>,
}

impl Exchange {
    /// Marks the deliveries as settling, and encodes the commands. No settlement may have an
    /// [`Effect::Fenced`].
    pub(super) fn new(settler: &Settler, settlements: Vec<Settlement>) -> Self {
        let guards = settlements.iter().map(|it| &it.delivery.guard);
        settler.in_flight.mark_settling(guards);
        let (mut acknowledgements, mut replies) = (Vec::new(), Vec::new());
        for mut settlement in settlements {
            match mem::replace(&mut settlement.effect, Effect::Acknowledge(None)) {
                Effect::Reply(reply) => replies.push(settlement.with(reply)),
                Effect::Acknowledge(publish) => acknowledgements.push(settlement.with(publish)),
                Effect::Fenced(_) => unreachable!("does not fit the connection that reads"),
            }
        }
        let mut exchange = Self {
            commands: Commands::default(),
            acknowledgements: by_stream(acknowledgements),
            reply_calls: by_stream(replies).into_iter().map(ReplyCall::new).collect(),
        };
        exchange.encode();
        exchange
    }

    fn encode(&mut self) {
        let commands = &mut self.commands;
        for settlement in self.acknowledgements.iter().flatten() {
            let Some((channel, envelope)) = &settlement.effect else {
                continue;
            };
            if commands.len() == 0 {
                // Redis sends the output of its clients in reverse order: the client whose output
                // came first is written last. The response to this `PING` is the first output. So
                // this connection is written last, and the recipients of the published replies wake
                // first.
                commands.push(redis::cmd("PING"));
            }
            commands.push(PublishCommand::new(&channel[..], envelope));
        }
        for of_stream in &self.acknowledgements {
            let ids: Vec<_> = of_stream
                .iter()
                .map(|it| it.delivery.guard.delivery_key.1)
                .collect();
            let first = &of_stream[0].delivery;
            commands.push(xack(&first.stream, first.guard.delivery_key.0, &ids));
        }
        for call in &self.reply_calls {
            commands.push(call.command());
        }
    }

    /// Returns the commands, in their order.
    pub(super) fn commands(&self) -> &Commands {
        &self.commands
    }

    /// Confirms the settlements that the server has carried out, and returns those that it has not
    /// confirmed.
    pub(super) fn finish(self, settler: &Settler, mut responses: Vec<Value>) -> Vec<Settlement> {
        let mut unconfirmed = Vec::new();
        let reply_responses = responses.split_off(responses.len() - self.reply_calls.len());
        for (call, response) in self.reply_calls.into_iter().zip(reply_responses) {
            if let Err((replies, _)) = call.finish(settler, response) {
                unconfirmed.extend(replies.into_iter().map(|it| it.map(Effect::Reply)));
            }
        }
        let ack_responses = responses.split_off(responses.len() - self.acknowledgements.len());
        // If one command failed, all acknowledgements are tried again.
        if ack_responses.iter().any(|it| error::code(it).is_some()) {
            unconfirmed.extend(settlements_of(self.acknowledgements));
            return unconfirmed;
        }
        // The first response answers the `PING`.
        for response in responses.into_iter().skip(1) {
            settler.handle_publish_response(response);
        }
        (self.acknowledgements.into_iter()).for_each(|batch| settler.confirm_done(batch));
        unconfirmed
    }

    /// Returns all settlements, for another attempt after the connection was lost.
    pub(super) fn into_settlements(self) -> Vec<Settlement> {
        let replies = self
            .reply_calls
            .into_iter()
            .flat_map(ReplyCall::into_replies);
        let stored = replies.map(|it| it.map(Effect::Reply));
        settlements_of(self.acknowledgements)
            .chain(stored)
            .collect()
    }
}

fn settlements_of(
    acknowledged: Vec<Vec<Settlement<Option<PublishedReply>>>>,
) -> impl Iterator<Item = Settlement> {
    let settlements = acknowledged.into_iter().flatten();
    settlements.map(|it| it.map(Effect::Acknowledge))
}
