//! Records the number of partitions of a stream. The record is a list of all numbers that the
//! stream has had, the current one last.

use std::{collections::HashSet, sync::Mutex};

use redis::Cmd;

use super::{
    Redis,
    keys::{self, Keys},
    pipeline::Resend,
    response::{array, bytes, count},
    scripts,
};
use crate::{
    error::Error,
    message::Name,
    sync::lock,
    transport::{Partitions, Role, owned_by_others_text},
};

/// The partitioned streams that a handle and its clones have checked, each with its number of
/// partitions.
#[derive(Debug, Default)]
pub(super) struct CheckedPartitions(Mutex<HashSet<(Name, usize)>>);

impl Redis {
    /// Returns a future that checks the handle's number of partitions against the record. `None` if
    /// the handle has no partitions, or if the check has succeeded before.
    pub(super) fn partition_check(
        &self,
    ) -> Option<impl Future<Output = Result<(), Error>> + Send + 'static + use<>> {
        let partitions = self.settings.partitions()?;
        let key = (partitions.stream.clone(), partitions.names.len());
        if lock(&self.shared.checked_partitions.0).contains(&key) {
            return None;
        }
        let (redis, partitions) = (self.clone(), partitions.clone());
        Some(async move {
            redis.check_partitions(&partitions, Role::Sender).await?;
            lock(&redis.shared.checked_partitions.0).insert(key);
            Ok(())
        })
    }

    /// Checks the number of partitions against the record of the stream. If there is no record,
    /// makes one.
    ///
    /// # Errors
    /// If the numbers do not agree, if all partitions are in one slot of a cluster, or if other
    /// workers of a worker's group own the partitions.
    pub(super) async fn check_partitions(
        &self,
        partitions: &Partitions,
        role: Role,
    ) -> Result<(), Error> {
        partitions.validate()?;
        let Partitions { stream, names, .. } = partitions;
        if self.shared.connector.is_cluster() && names.len() > 1 && keys::has_hash_tag(stream) {
            return Err(Error::config(format!(
                "the hash tag in the name `{stream}` puts all of its partitions in one slot of the \
                 Redis Cluster, on one server; leave the braces out"
            )));
        }
        let keys = Keys::new(&self.options.namespace, stream, &self.settings.group)?;
        let record = keys.partitions();
        let args = |cmd: &mut Cmd| {
            cmd.arg(names.len()).arg(u8::from(role == Role::Worker));
        };
        // The call can be repeated, since recording the same number twice changes nothing.
        let pipeline = self.shared.pipeline.for_key(&record);
        let record_key = [record.as_str()];
        let response = pipeline.script_until_known(&scripts::RECORD_PARTITIONS, &record_key, args);
        let response = response.await?;
        let numbers = array(response)?.into_iter().map(|number| {
            let number = bytes(number)?;
            Ok(std::str::from_utf8(&number)
                .ok()
                .and_then(|text| text.parse().ok()))
        });
        let numbers = numbers.collect::<Result<Option<Vec<usize>>, Error>>()?;
        let numbers = numbers.ok_or_else(|| {
            Error::config(format!(
                "the key `{record}` does not hold the numbers of partitions of the stream `{stream}`; \
                 delete the key, or choose another name for the stream"
            ))
        })?;
        partitions.check_against_record(role, &numbers)?;
        match role {
            Role::Worker if !partitions.owned => self.check_unowned(&keys).await,
            Role::Worker | Role::Sender => Ok(()),
        }
    }

    /// Fails if other workers of the group own the partitions.
    async fn check_unowned(&self, keys: &Keys) -> Result<(), Error> {
        let (stream, group, members) = (&keys.stream, &keys.group, keys.members());
        let mut cmd = redis::cmd("HLEN");
        cmd.arg(&members);
        let pipeline = self.shared.pipeline.for_key(&members);
        match count(&pipeline.command(cmd, Resend::Never).await?)? {
            0 => Ok(()),
            _ => Err(Error::config(format!(
                "{}; if none of those workers runs any more, delete the key `{members}`",
                owned_by_others_text(stream, group)
            ))),
        }
    }
}
