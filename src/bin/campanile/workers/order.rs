//! Orders to a worker: `campanile workers drain`, `limit`, `pause` and `resume`

use std::time::{Duration, Instant};

use campanile::transport::{WorkerInfo, WorkerOrder, WorkerState, Workers};
use clap::Args;
use serde_json::json;

use super::short_name;
use crate::{
    command_error::CommandError,
    show::{Out, text},
};

/// The maximum time to wait until the worker shows that it follows the order.
const MAX_WAIT: Duration = Duration::from_secs(5);

#[derive(Debug, Args)]
pub(crate) struct OrderArgs {
    /// The worker, or a part of its name that no other worker has.
    pub(super) worker: String,
    /// The name of the operator. The worker logs it.
    #[arg(long, env = "USER", default_value = "a terminal")]
    by: String,
}

/// The maximum number of deliveries in flight, or `None` for the configured number.
#[derive(Debug, Clone, Copy)]
pub(crate) struct MaxInFlight(pub(super) Option<usize>);

pub(super) fn parse_max(text: &str) -> Result<MaxInFlight, String> {
    if text == "none" {
        return Ok(MaxInFlight(None));
    }
    match text.parse() {
        Ok(0) | Err(_) => Err("a limit is a number from 1, or `none`".to_owned()),
        Ok(max) => Ok(MaxInFlight(Some(max))),
    }
}

impl OrderArgs {
    /// Gives an order, and waits until the worker follows it.
    pub(super) async fn give(
        &self,
        workers: &Workers,
        worker: &WorkerInfo,
        order: WorkerOrder,
        out: &Out,
    ) -> Result<(), CommandError> {
        let name = &worker.worker;
        let before = worker.orders.last().map(|last| last.at);
        if !workers.order(name, order.clone(), &self.by).await? {
            let text = format!("the worker `{name}` does not live any more");
            return Err(CommandError::Missing(text));
        }
        let given_at = Instant::now();
        let is_followed = |found: &[WorkerInfo]| match found.iter().find(|it| it.worker == *name) {
            // The worker has ended.
            None => order == WorkerOrder::Drain,
            Some(found) => {
                let is_drained = found.state == WorkerState::Draining;
                let last = found.orders.last().map(|last| last.at);
                last > before || order == WorkerOrder::Drain && is_drained
            }
        };
        while !is_followed(&workers.list().await?) {
            if given_at.elapsed() > MAX_WAIT {
                return Err(CommandError::Failed(format!(
                    "the worker `{name}` has the order and does not show that it follows it; \
                     `campanile workers` shows what it follows"
                )));
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        if out.json {
            let order = order.to_string();
            return out.write_document(&json!({ "worker": name, "order": order, "by": self.by }));
        }
        let (name, order) = (text::line(short_name(name)), text::line(order.to_string()));
        out.write_lines([format!("the worker {name} follows: {order}")])
    }
}
