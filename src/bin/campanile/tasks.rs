//! `campanile tasks`

use campanile::{MessageId, transport::TaskStatus};
use clap::Subcommand;
use serde_json::{Value, json};

use crate::{
    command_error::CommandError,
    show::{Out, json, text},
    target::Target,
};

#[derive(Debug, Subcommand)]
pub(crate) enum TasksCommand {
    /// Shows the status of a task that is tracked or unique.
    Status {
        /// The id of the task, as in its receipt.
        id: String,
    },
    /// Cancels a task, in any state.
    ///
    /// A task that is neither tracked nor unique can only be cancelled while its sender's delay lasts.
    Cancel {
        /// The id of the task, as in its receipt.
        id: String,
        /// The reason, for the status of the task and for its handler.
        #[arg(long, default_value = "cancelled from a terminal")]
        reason: String,
    },
}

impl TasksCommand {
    pub(crate) async fn run(self, target: &Target, out: &Out) -> Result<(), CommandError> {
        // The status of a task is recorded before its stream and its group exist.
        let redis = target.connect().await?;
        let tasks = redis.tasks();
        match self {
            Self::Status { id } => {
                let status = tasks.status(&MessageId::from(&*id)).await?;
                let status = status.ok_or_else(|| {
                    CommandError::Missing(format!(
                        "no status is recorded for the task {id}: it is neither tracked nor unique, it \
                         ended too long ago, or its sender has another --stream or --group"
                    ))
                })?;
                match out.json {
                    true => out.document(&document(&status)),
                    false => out.lines(lines(&status)),
                }
            }
            Self::Cancel { id, reason } => {
                match tasks.cancel(&MessageId::from(&*id), &reason).await? {
                    true if out.json => out.document(&json!({ "cancelled": id })),
                    true => out.lines([format!("cancelled {id}")]),
                    false => Err(CommandError::Missing(format!(
                        "the task {id} cannot be cancelled: it has ended, it is unknown, or its sender \
                         has another --stream or --group"
                    ))),
                }
            }
        }
    }
}

fn lines(status: &TaskStatus) -> Vec<String> {
    let fact = |title: &str, value: &str| format!("{title:<10}{}", text::line(value));
    let mut lines = vec![
        fact("id", &status.id),
        fact("name", &status.name),
        fact("state", status.state.as_str()),
        fact("attempt", &status.attempt.0.to_string()),
        fact("accepted", &text::time(status.accepted_at)),
    ];
    let started = status.started_at.map(|time| ("started", text::time(time)));
    let ended = status.ended_at.map(|time| ("ended", text::time(time)));
    let reason = Some(status.reason.clone()).filter(|reason| !reason.is_empty());
    let reason = reason.map(|reason| ("reason", reason));
    let unique = status
        .unique
        .as_ref()
        .map(|key| ("unique", key.to_string()));
    let more = [started, ended, reason, unique].into_iter().flatten();
    lines.extend(more.map(|(title, value)| fact(title, &value)));
    lines
}

fn document(status: &TaskStatus) -> Value {
    json!({
        "id": &*status.id,
        "name": &*status.name,
        "state": status.state.as_str(),
        "attempt": status.attempt.0,
        "reason": status.reason,
        "unique": status.unique.as_deref(),
        "accepted_at": json::time(status.accepted_at),
        "started_at": status.started_at.map(json::time),
        "ended_at": status.ended_at.map(json::time),
        "keep_ms": json::milliseconds(status.keep),
    })
}
