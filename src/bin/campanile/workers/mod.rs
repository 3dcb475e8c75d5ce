//! `campanile workers`

mod list;
mod order;

use campanile::transport::{WorkerInfo, WorkerOrder, Workers};
use clap::Subcommand;

pub(crate) use self::list::state;
use self::order::OrderArgs;
use crate::{command_error::CommandError, confirm::Confirm, show::Out, target::Target};

#[derive(Debug, Subcommand)]
pub(crate) enum WorkersCommand {
    /// Lists the workers of the group. This is the default.
    List,
    /// Asks the workers for a sign of life, and names those that do not answer.
    Ping,
    /// Ends a worker: it fetches nothing more, and its running handlers end as usual.
    ///
    /// A supervisor may start its process again.
    Drain {
        #[command(flatten)]
        order: OrderArgs,
        #[command(flatten)]
        confirm: Confirm,
    },
    /// Lowers the number of deliveries that a worker has in flight.
    Limit {
        #[command(flatten)]
        order: OrderArgs,
        /// The number, or `none` for the configured one.
        #[arg(value_parser = order::parse_max)]
        max: order::MaxInFlight,
    },
    /// Pauses a worker, or a name on this worker alone.
    Pause {
        #[command(flatten)]
        order: OrderArgs,
        /// Only the tasks and requests with this name.
        #[arg(long)]
        name: Option<String>,
    },
    /// Ends a pause of a worker, or of a name on this worker.
    Resume {
        #[command(flatten)]
        order: OrderArgs,
        /// The name that is paused.
        #[arg(long)]
        name: Option<String>,
    },
}

impl WorkersCommand {
    pub(crate) async fn run(self, target: &Target, out: &Out) -> Result<(), CommandError> {
        let (redis, _) = target.connect_to_group().await?;
        let workers = redis.workers();
        match self {
            Self::List => list::list(&workers, out).await,
            Self::Ping => list::ping(&workers, out).await,
            Self::Drain { order, confirm } => {
                let worker = find(&workers, &order.worker).await?;
                let question = format!("Drain the worker {}?", worker.worker);
                confirm.ask(&question).await?;
                order.give(&workers, &worker, WorkerOrder::Drain, out).await
            }
            Self::Limit { order, max } => {
                let worker = find(&workers, &order.worker).await?;
                order
                    .give(&workers, &worker, WorkerOrder::Limit(max.0), out)
                    .await
            }
            Self::Pause { order, name } => {
                let worker = find(&workers, &order.worker).await?;
                let worker_order = name.map_or(WorkerOrder::Pause, |name| {
                    WorkerOrder::PauseName(name.into())
                });
                order.give(&workers, &worker, worker_order, out).await
            }
            Self::Resume { order, name } => {
                let worker = find(&workers, &order.worker).await?;
                let worker_order = name.map_or(WorkerOrder::Resume, |name| {
                    WorkerOrder::ResumeName(name.into())
                });
                order.give(&workers, &worker, worker_order, out).await
            }
        }
    }
}

/// A worker's name ends with a random part. This number of its characters is shown.
const SHOWN_ID_CHARS: usize = 8;

/// Shortens the name of a worker to its host, its process and the beginning of its random part.
pub(crate) fn short_name(worker: &str) -> &str {
    // The name is `campanile-lease=<milliseconds>ms-<host>-<process>-<UUID>`.
    let name = worker.strip_prefix("campanile-lease=");
    let name = name.and_then(|rest| Some(rest.split_once("ms-")?.1));
    let Some(name) = name else { return worker };
    let id_start = name
        .len()
        .checked_sub(36)
        .filter(|at| name.is_char_boundary(*at));
    id_start.map_or(name, |at| &name[..at + SHOWN_ID_CHARS])
}

/// Returns the worker with this name, or else the only worker whose name contains `text`.
async fn find(workers: &Workers, text: &str) -> Result<WorkerInfo, CommandError> {
    let listed = workers.list().await?;
    let mut found: Vec<_> = listed
        .into_iter()
        .filter(|it| it.worker.contains(text))
        .collect();
    if let Some(at) = found.iter().position(|it| it.worker == text) {
        return Ok(found.swap_remove(at));
    }
    match found.len() {
        1 => Ok(found.swap_remove(0)),
        0 => Err(CommandError::Missing(format!(
            "there is no worker `{text}`; `campanile workers` lists them"
        ))),
        count => Err(CommandError::Usage(format!(
            "{count} workers have `{text}` in their names; give more of the name, as `campanile \
             workers` shows it"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_is_shown_by_host_process_and_a_part_of_its_id() {
        let name = "campanile-lease=10000ms-web-1-77-0c9d8fd0-1f1e-4a7a-8d1f-3f5b7c1a2b3c";
        assert_eq!(short_name(name), "web-1-77-0c9d8fd0");
        assert!(name.contains(short_name(name)));
        for other in [
            "memory-7",
            "campanile-lease=1ms-x",
            "",
            "campanile-lease=1ms-ä",
        ] {
            assert!(other.contains(short_name(other)), "{other}");
        }
    }
}
