//! The measured libraries.

use crate::{
    apalis, bullmq,
    nats::{self, AckMode},
    nats_server::NatsServer,
    ours, oxana,
    probe::Probe,
    raw,
    ruststream::{self, Handler},
    workload::{Job, Round, Work},
};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Peer {
    /// Loops over bare redis-rs, written by hand: the baseline.
    Raw,
    Campanile,
    Apalis,
    RustStream,
    /// RustStream with a handler that gets all messages of a read at once.
    RustStreamBatch,
    /// Oxana at its default concurrency, which is one job at a time.
    Oxana,
    /// Oxana with 64 jobs at a time.
    OxanaConcurrent,
    /// BullMQ at its default concurrency, which is one job at a time.
    BullMq,
    /// BullMQ with 64 jobs at a time.
    BullMqConcurrent,
    /// JetStream, or core NATS for requests.
    Nats,
    /// JetStream, where the server confirms each acknowledgement.
    NatsConfirmed,
}

/// All peers, in the order in which they are measured. The baseline is first, since the others are
/// compared with it.
pub(crate) const ALL: [Peer; 11] = [
    Peer::Raw,
    Peer::Campanile,
    Peer::Apalis,
    Peer::RustStream,
    Peer::RustStreamBatch,
    Peer::Oxana,
    Peer::OxanaConcurrent,
    Peer::BullMq,
    Peer::BullMqConcurrent,
    Peer::Nats,
    Peer::NatsConfirmed,
];

impl Peer {
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Peer::Raw => "raw",
            Peer::Campanile => "campanile",
            Peer::Apalis => "apalis-redis",
            Peer::RustStream => "ruststream-fred",
            Peer::RustStreamBatch => "ruststream-fred-batch",
            Peer::Oxana => "oxana",
            Peer::OxanaConcurrent => "oxana-64",
            Peer::BullMq => "bullmq-official",
            Peer::BullMqConcurrent => "bullmq-official-64",
            Peer::Nats => "async-nats",
            Peer::NatsConfirmed => "async-nats-double-ack",
        }
    }

    /// Returns whether the peer supports this workload.
    pub(crate) fn supports(&self, work: Work) -> bool {
        let rpc = matches!(work, Work::Rpc { .. });
        !rpc || matches!(self, Peer::Raw | Peer::Campanile | Peer::Nats)
    }

    /// The number of messages in a round of this peer. Slow peers get fewer messages, or their
    /// rounds would take minutes.
    fn message_count(&self, job: &Job) -> usize {
        match self {
            Peer::Oxana | Peer::BullMq => job.count / 10,
            Peer::OxanaConcurrent | Peer::BullMqConcurrent => job.count / 4,
            _ => job.count,
        }
    }

    pub(crate) async fn round(&self, redis: &Probe, nats: &NatsServer, job: &Job) -> Round {
        redis.clear(&job.setup).await;
        let job = &Job {
            count: self.message_count(job),
            ..*job
        };
        let round = match self {
            Peer::Raw => raw::round(redis, job).await,
            Peer::Campanile => ours::round(redis, job).await,
            Peer::Apalis => apalis::round(redis, job).await,
            Peer::RustStream => ruststream::round(redis, Handler::One, job).await,
            Peer::RustStreamBatch => ruststream::round(redis, Handler::Batch, job).await,
            Peer::Oxana => oxana::round(redis, None, job).await,
            Peer::OxanaConcurrent => oxana::round(redis, Some(64), job).await,
            Peer::BullMq => bullmq::round(redis, None, job).await,
            Peer::BullMqConcurrent => bullmq::round(redis, Some(64), job).await,
            Peer::Nats => nats::round(nats, AckMode::Sent, job).await,
            Peer::NatsConfirmed => nats::round(nats, AckMode::Confirmed, job).await,
        };
        // The streams of Redis are empty if the peer does not use them.
        assert!(
            redis.is_drained(&job.setup).await,
            "{} of {} left something unread or pending",
            job.name,
            self.name()
        );
        round
    }
}
