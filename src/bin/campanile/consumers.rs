//! `campanile consumers`

use campanile::{Redis, transport::ConsumerStats};
use clap::Subcommand;
use serde_json::{Value, json};

use crate::{
    command_error::CommandError,
    confirm::Confirm,
    show::{Out, Table, json, text},
    target::Target,
};

#[derive(Debug, Subcommand)]
pub(crate) enum ConsumersCommand {
    /// Lists the consumers of the group, by name.
    ///
    /// A consumer of another library is `foreign`.
    List,
    /// Deletes a consumer. Messages that are pending for it are lost for the group.
    Drop {
        /// The consumer.
        #[arg(value_name = "NAME")]
        name: String,
        /// Deletes the consumer even if it is live, or if messages are pending for it.
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        confirm: Confirm,
    },
}

impl ConsumersCommand {
    pub(crate) async fn run(self, target: &Target, out: &Out) -> Result<(), CommandError> {
        let (redis, group) = target.connect_to_group().await?;
        if let Self::Drop {
            name,
            force,
            confirm,
        } = self
        {
            return drop_consumer(&redis, &name, force, &confirm, out).await;
        }
        // A group that was deleted in the meantime has no consumers.
        let consumers = redis.consumers().await?.unwrap_or_default();
        if out.json {
            return out.write_document(&json!({
                "stream": &*target.stream(),
                "group": &*group,
                "consumers": consumers.iter().map(consumer_json).collect::<Value>(),
            }));
        }
        if consumers.is_empty() {
            return out.write_lines(["no consumers"]);
        }
        let mut table = Table::new(&["CONSUMER", "KIND", ">PENDING", ">IDLE"]);
        for consumer in consumers {
            let kind = match consumer.foreign {
                true => "foreign",
                false => "campanile",
            };
            table.add_row([
                consumer.consumer,
                kind.into(),
                consumer.pending.to_string(),
                text::duration(consumer.idle),
            ]);
        }
        out.write_lines(table.lines())
    }
}

async fn drop_consumer(
    redis: &Redis,
    name: &str,
    force: bool,
    confirm: &Confirm,
    out: &Out,
) -> Result<(), CommandError> {
    let listed = redis.consumers().await?.unwrap_or_default();
    let Some(consumer) = listed.into_iter().find(|it| it.consumer == name) else {
        let text = format!("there is no consumer `{name}`; `campanile consumers list` lists them");
        return Err(CommandError::Missing(text));
    };
    let pending = consumer.pending;
    if pending > 0 && !force {
        return Err(CommandError::Failed(format!(
            "{pending} messages are pending for the consumer `{name}` and would be lost; workers claim \
             them once its lease has ended; to drop it now, pass --force"
        )));
    }
    let idle = text::duration(consumer.idle);
    let question = format!(
        "Drop the consumer `{name}`, which was silent for {idle}, with {pending} pending messages?"
    );
    confirm.ask(&question).await?;
    let lost = redis.drop_consumer(name, force).await?;
    match out.json {
        true => out.write_document(&json!({ "dropped": name, "lost": lost })),
        false => out.write_lines([format!(
            "dropped the consumer {}, with {lost} messages",
            text::line(name)
        )]),
    }
}

fn consumer_json(consumer: &ConsumerStats) -> Value {
    json!({
        "consumer": consumer.consumer,
        "foreign": consumer.foreign,
        "pending": consumer.pending,
        "idle_ms": json::milliseconds(consumer.idle),
    })
}
