//! Reads of an owned partition: takes over what is pending for former owners, and keeps the order of
//! each key.

use futures_util::future::join_all;
use redis::Cmd;
use tokio::time::Instant;

use super::{
    super::{key_order::KeyOrder, member::Member, streams::ServedStream},
    Fetch, FetchParts,
    recovery::PAGE_LEN,
};
use crate::{
    error::Error,
    transport::redis::{
        entry::{Entry, WhichStream},
        pipeline::{Pipeline, Resend},
        response::{bytes, fixed_array, integer},
        scripts,
    },
};

/// For this number of leases after the beginning of a term, each read is followed by a search for
/// entries that a former owner's read has taken. The former owner sends no reads in this term, but
/// the server may carry out an earlier read late.
pub(super) const LATE_READ_LEASES: u32 = 10;

impl Fetch {
    /// Reduces the demand to the number that the order of an owned partition allows. If there are
    /// released deliveries, hands these out again and returns `None`. If the order allows no fetch,
    /// waits until the order has changed, and returns `None`.
    pub(super) async fn room_in_order(&mut self, room: usize) -> Option<usize> {
        let FetchParts { order, buffer, .. } = &self.parts;
        let Some(order) = order else {
            return Some(room);
        };
        let ready = order.take_put_back(room);
        let allowed = room.min(order.room());
        if ready.is_empty() && allowed > 0 {
            return Some(allowed);
        }
        let waits = ready.is_empty();
        buffer.put(ready);
        if waits {
            tokio::select! {
                biased;
                () = buffer.stopped() => {}
                () = order.changed() => {}
            }
        }
        None
    }

    /// Makes the entries of former owners of the partition pending for this consumer, and starts
    /// the recovery, which fetches them. Returns their number. Repeated once per lease, since a
    /// former owner's read may run late on the server.
    pub(super) async fn inherit(&mut self) -> Result<u64, Error> {
        let FetchParts {
            order,
            member,
            streams,
            pipeline,
            report,
            ..
        } = &self.parts;
        let Some(order) = order
            .as_ref()
            .filter(|_| self.inherits_at <= Instant::now())
        else {
            return Ok(0);
        };
        let mut inherited = 0;
        for stream in streams.all().iter() {
            // At the same time, since every read of a young term waits for this.
            let group = (&**member, pipeline);
            let both = stream.both_streams();
            let both = both.map(|which| inherit_from(group, order, stream, which));
            for found in join_all(both).await {
                let Some(count) = found? else {
                    order.break_off();
                    return Ok(0);
                };
                inherited += count;
            }
            if inherited > 0 {
                report.counters.claimed.add(inherited);
                let (stream, group) = (&stream.keys.stream, &member.group);
                tracing::info!(%stream, %group, inherited, "took over deliveries of former owners of the partition");
            }
        }
        self.inherits_at = Instant::now() + member.lease;
        if inherited > 0 {
            self.parts.recovery.begin();
        }
        Ok(inherited)
    }

    /// Returns the entries of a read, unless a former owner's read was carried out after the term
    /// began. That read may have taken earlier entries with the same keys. In that case breaks off
    /// the order and returns no entries: the next term inherits all entries in their order.
    pub(super) async fn drop_after_late_read(
        &mut self,
        entries: Vec<Entry>,
    ) -> Result<Vec<Entry>, Error> {
        let now = Instant::now();
        let Some(order) = self.parts.order.clone() else {
            return Ok(entries);
        };
        if entries.is_empty() || self.fetched_by_recovery || now > self.late_reads_until {
            return Ok(entries);
        }
        self.inherits_at = now;
        match self.inherit().await {
            Ok(0) => Ok(entries),
            Ok(_) => {
                order.break_off();
                Ok(Vec::new())
            }
            Err(error) => {
                // The entries are pending for this consumer.
                self.parts.recovery.begin();
                Err(error)
            }
        }
    }
}

/// Makes the entries of one stream that are pending for former owners pending for this consumer.
/// Returns their number. `None` if the partition has another owner now.
async fn inherit_from(
    (member, pipeline): (&Member, &Pipeline),
    order: &KeyOrder,
    stream: &ServedStream,
    which: WhichStream,
) -> Result<Option<u64>, Error> {
    let owner = stream.keys.owner();
    let keys = [stream.key_of(which), owner.as_str()];
    let (mut inherited, mut from) = (0, "-".to_owned());
    while !from.is_empty() {
        let args = |cmd: &mut Cmd| {
            cmd.arg(member.group.as_str())
                .arg(&member.consumer)
                .arg(order.term.term)
                .arg(&from)
                .arg(PAGE_LEN);
        };
        let script = &scripts::INHERIT;
        let response = pipeline.script(script, &keys, args, Resend::Never).await?;
        let [count, next] = fixed_array(response)?;
        let Ok(count) = u64::try_from(integer(&count)?) else {
            return Ok(None);
        };
        inherited += count;
        from = String::from_utf8_lossy(&bytes(next)?).into_owned();
    }
    Ok(Some(inherited))
}
