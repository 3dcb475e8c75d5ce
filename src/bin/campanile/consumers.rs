//! `campanile consumers`

use campanile::transport::ConsumerStats;
use clap::Subcommand;
use serde_json::{Value, json};

use crate::{
    command_error::CommandError,
    show::{Out, Table, json, text},
    target::Target,
};

#[derive(Debug, Subcommand)]
pub(crate) enum ConsumersCommand {
    /// Lists the consumers of the group, by name.
    ///
    /// A consumer is `foreign` if it is of another library.
    List,
}

impl ConsumersCommand {
    pub(crate) async fn run(self, target: &Target, out: &Out) -> Result<(), CommandError> {
        let ConsumersCommand::List = self;
        let (redis, group) = target.connect_to_group().await?;
        // A group that was deleted in the meantime has no consumers.
        let consumers = redis.consumers().await?.unwrap_or_default();
        if out.json {
            return out.document(&json!({
                "stream": &*target.stream(),
                "group": &*group,
                "consumers": consumers.iter().map(document).collect::<Value>(),
            }));
        }
        if consumers.is_empty() {
            return out.lines(["no consumers"]);
        }
        let mut table = Table::new(&["CONSUMER", "KIND", ">PENDING", ">IDLE"]);
        for consumer in consumers {
            let kind = match consumer.foreign {
                true => "foreign",
                false => "campanile",
            };
            table.row([
                consumer.consumer,
                kind.into(),
                consumer.pending.to_string(),
                text::duration(consumer.idle),
            ]);
        }
        out.lines(table.lines())
    }
}

fn document(consumer: &ConsumerStats) -> Value {
    json!({
        "consumer": consumer.consumer,
        "foreign": consumer.foreign,
        "pending": consumer.pending,
        "idle_ms": json::milliseconds(consumer.idle),
    })
}
