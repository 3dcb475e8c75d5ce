//! Who is measured.

use crate::{
    GROUP, STREAM, apalis,
    nats::{self, Acknowledge},
    nats_server::NatsServer,
    ours, raw,
    ruststream::{self, Handler},
    support::{RedisServer, raw as server},
    workload::{Round, Work, Workload},
};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Peer {
    /// Bare redis-rs by hand: the baseline.
    Raw,
    Campanile,
    Apalis,
    RustStream,
    /// RustStream with a handler that has all messages of a read at once.
    RustStreamBatch,
    /// JetStream, or core NATS for requests.
    Nats,
    /// JetStream, where each acknowledgement is answered.
    NatsConfirmed,
}

/// In the order of a round. The baseline is first, so that every other one is compared to it.
pub(crate) const ALL: [Peer; 7] = [
    Peer::Raw,
    Peer::Campanile,
    Peer::Apalis,
    Peer::RustStream,
    Peer::RustStreamBatch,
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
            Peer::Nats => "async-nats",
            Peer::NatsConfirmed => "async-nats-double-ack",
        }
    }

    /// Whether it has such a workload at all.
    pub(crate) fn does(&self, work: Work) -> bool {
        let rpc = matches!(work, Work::Rpc { .. });
        !rpc || matches!(self, Peer::Raw | Peer::Campanile | Peer::Nats)
    }

    pub(crate) async fn round(
        &self,
        redis: &RedisServer,
        nats: &NatsServer,
        workload: Workload,
        count: usize,
    ) -> Round {
        match self {
            Peer::Nats => return nats::round(nats, Acknowledge::Sent, workload, count).await,
            Peer::NatsConfirmed => {
                return nats::round(nats, Acknowledge::Confirmed, workload, count).await;
            }
            _ => redis.command(&["FLUSHALL"]).await,
        };
        if *self == Peer::Apalis {
            return apalis::round(redis, workload, count).await;
        }
        redis
            .command(&["XGROUP", "CREATE", STREAM, GROUP, "0", "MKSTREAM"])
            .await;
        let round = match self {
            Peer::Raw => raw::round(redis, workload, count).await,
            Peer::Campanile => ours::round(redis, workload, count).await,
            Peer::RustStreamBatch => {
                ruststream::round(redis, Handler::Batch, workload, count).await
            }
            _ => ruststream::round(redis, Handler::One, workload, count).await,
        };
        assert!(
            server::drained(redis, STREAM, GROUP).await,
            "{} of {} left something unread or pending",
            workload.name,
            self.name()
        );
        round
    }
}
