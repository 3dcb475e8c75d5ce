//! `campanile dead list`

use std::num::NonZeroUsize;

use campanile::{
    DeadLetterId,
    transport::{DeadLetter, DeadLetters, Page},
};
use clap::Args;
use serde_json::{Value, json};

use super::decode_with_title;
use crate::{
    command_error::{CommandError, note},
    show::{Out, Table, json, text},
};

/// The maximum length of a reason in a table, in bytes.
const MAX_REASON_LEN: usize = 100;
/// The maximum number of letters in one request.
const MAX_LETTERS_PER_REQUEST: usize = 1_000;

#[derive(Debug, Args)]
pub(crate) struct List {
    /// The maximum number of letters to list.
    #[arg(long, short, value_name = "COUNT", default_value = "50")]
    limit: NonZeroUsize,
    /// Starts after this letter: the last one of the previous page.
    #[arg(long, value_name = "ID")]
    after: Option<String>,
    /// Lists all letters.
    #[arg(long, conflicts_with = "limit")]
    all: bool,
}

impl List {
    pub(crate) async fn run(self, dead: &DeadLetters, out: &Out) -> Result<(), CommandError> {
        let total = dead.count().await?;
        let max = match self.all {
            true => usize::MAX,
            false => self.limit.get(),
        };
        let mut letters = Vec::new();
        let mut next = Some(page(self.after.map(DeadLetterId::from), max));
        while let Some(part) = next {
            let found = dead.list(part).await?;
            // A row does not keep the payload, which may be large.
            letters.extend(found.letters.iter().map(Row::of));
            let last = found.next.and_then(|page| page.after);
            next = last.map(|last| page(Some(last), max - letters.len()));
            if letters.len() >= max {
                break;
            }
        }
        let next = next.and_then(|page| page.after);
        if out.json {
            return out.write_document(&json!({
                "dead": total,
                "letters": letters.into_iter().map(|row| row.json).collect::<Value>(),
                "next": next.as_deref(),
            }));
        }
        if total == 0 {
            return out.write_lines(["no dead letters"]);
        }
        let mut table = Table::new(&["ID", "KIND", "NAME", ">ATTEMPTS", "DIED", "REASON"]);
        let listed = letters.len();
        letters.into_iter().for_each(|row| table.add_row(row.cells));
        out.write_lines(table.lines())?;
        if let Some(last) = next {
            note(format!("{listed} of {total}; the next: --after {last}"));
        }
        Ok(())
    }
}

/// Returns the request for the next letters, for at most `max` of them.
fn page(after: Option<DeadLetterId>, max: usize) -> Page {
    let mut page = Page::first(max.min(MAX_LETTERS_PER_REQUEST));
    page.after = after;
    page
}

/// A letter in the list, without its message.
struct Row {
    cells: [String; 6],
    json: Value,
}

impl Row {
    fn of(letter: &DeadLetter) -> Self {
        let (message, kind, name) = decode_with_title(letter);
        let mut json = letter_json(letter);
        if let Ok(message) = &message {
            json["kind"] = message.kind().as_str().into();
            json["name"] = message.name().as_str().into();
        }
        Self {
            cells: [
                letter.id.to_string(),
                kind,
                name,
                letter.attempts.to_string(),
                text::time(letter.died_at),
                text::excerpt(letter.reason.as_bytes(), MAX_REASON_LEN),
            ],
            json,
        }
    }
}

/// Returns the JSON of a letter without its message. The caller fills in the kind and the name.
pub(super) fn letter_json(letter: &DeadLetter) -> Value {
    json!({
        "id": &*letter.id,
        "message_id": &*letter.message_id,
        "kind": null,
        "name": null,
        "attempts": letter.attempts,
        "died_at_ms": json::time(letter.died_at),
        "reason": letter.reason,
    })
}
