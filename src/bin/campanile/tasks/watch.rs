//! `campanile tasks watch`

use campanile::transport::{ChangesFrom, FeedItem, TaskChange, Tasks};
use clap::Args;
use serde_json::{Value, json};

use crate::{
    command_error::{CommandError, note},
    show::{Out, json, text},
    signals,
    target::Target,
};

/// The maximum length of a reason on a line, in bytes.
const MAX_REASON_LEN: usize = 256;

#[derive(Debug, Args)]
pub(crate) struct Watch {
    /// The start: `now`, `beginning`, or the cursor of a change, as `--json` shows it.
    #[arg(long, default_value = "now")]
    from: String,
    /// Ends after this number of changes.
    #[arg(long, short = 'n', value_name = "COUNT")]
    count: Option<u64>,
}

impl Watch {
    pub(crate) async fn run(
        self,
        tasks: &Tasks,
        target: &Target,
        out: &Out,
    ) -> Result<(), CommandError> {
        let interrupted = signals::cancel_on_interrupt()?;
        if out.terminal {
            note(format!(
                "watching the tasks of {}; Ctrl-C ends it",
                target.stream()
            ));
        }
        let watch_until_end = self.show(tasks, out);
        interrupted
            .run_until_cancelled(watch_until_end)
            .await
            .unwrap_or(Ok(()))
    }

    async fn show(self, tasks: &Tasks, out: &Out) -> Result<(), CommandError> {
        let from = match &*self.from {
            "now" => ChangesFrom::Now,
            "beginning" => ChangesFrom::Beginning,
            cursor => ChangesFrom::Cursor(cursor.into()),
        };
        let mut changes = tasks.changes(from).await?;
        let mut shown = 0;
        while self.count.is_none_or(|count| shown < count) {
            match changes.next().await? {
                FeedItem::Change(change) if out.json => {
                    out.write_document(&change_json(&change, &changes.cursor()))?;
                }
                FeedItem::Change(change) => out.write_lines([line(&change)])?,
                _ => {
                    note("some changes were dropped before they could be shown");
                    continue;
                }
            }
            shown += 1;
        }
        Ok(())
    }
}

fn line(change: &TaskChange) -> String {
    let TaskChange {
        id, name, state, ..
    } = change;
    let (id, name) = (text::line(&**id), text::line(&**name));
    let reason = text::excerpt(change.reason.as_bytes(), MAX_REASON_LEN);
    let (at, attempt) = (text::time(change.at), change.attempt.0);
    let line = format!(
        "{at}  {id}  {:<9}  {name}  {attempt}  {reason}",
        state.as_str()
    );
    line.trim_end().to_owned()
}

fn change_json(change: &TaskChange, cursor: &str) -> Value {
    json!({
        "id": &*change.id,
        "name": &*change.name,
        "state": change.state.as_str(),
        "attempt": change.attempt.0,
        "reason": change.reason,
        "at": json::time(change.at),
        "cursor": cursor,
    })
}
