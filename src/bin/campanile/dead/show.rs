//! `campanile dead show`

use campanile::{
    DeadLetterId, Message,
    transport::{DeadLetter, DeadLetters, Undecodable},
};
use clap::Args;

use super::{decode_with_title, list::letter_json};
use crate::{
    command_error::CommandError,
    show::{
        Out, json,
        text::{self, fact},
    },
};

#[derive(Debug, Args)]
pub(crate) struct Show {
    /// The id of the letter, as `dead list` shows it.
    id: String,
    /// Writes only the payload, byte for byte.
    #[arg(long, conflicts_with = "json")]
    raw: bool,
}

impl Show {
    pub(crate) async fn run(
        self,
        dead_letters: &DeadLetters,
        out: &Out,
    ) -> Result<(), CommandError> {
        let id = DeadLetterId::from(self.id);
        let letter = dead_letters.get(&id).await?;
        let letter =
            letter.ok_or_else(|| CommandError::Missing(format!("there is no dead letter {id}")))?;
        let (message, kind, name) = decode_with_title(&letter);
        if self.raw {
            return match message {
                Ok(message) => out.write_raw(message.payload()),
                Err(undecodable) => Err(CommandError::Failed(format!(
                    "it is no message and has no payload: {}",
                    undecodable.reason
                ))),
            };
        }
        if out.json {
            return out.write_document(&full_letter_json(&letter, &message));
        }
        out.write_lines(format_letter(&letter, &message, &kind, &name))
    }
}

fn format_letter(
    letter: &DeadLetter,
    message: &Result<Message, Undecodable>,
    kind: &str,
    name: &str,
) -> Vec<String> {
    let mut lines = vec![
        fact("id", &letter.id),
        fact("message", &letter.message_id),
        fact("kind", kind),
        fact("name", name),
        fact("attempts", &letter.attempts.to_string()),
        fact("died", &text::time(letter.died_at)),
        fact("reason", &letter.reason),
    ];
    match message {
        Ok(message) => {
            for (name, value) in message.headers() {
                let value = text::line(value.as_bytes());
                lines.push(format!("{:<10}{name}: {value}", "header"));
            }
            lines.push(fact(
                "payload",
                &format!("{} bytes", message.payload().len()),
            ));
            lines.extend([String::new(), text::block(message.payload())]);
        }
        Err(undecodable) => {
            lines.push(fact("why", &undecodable.reason));
            for (field, value) in &undecodable.fields {
                let (field, value) = (text::line(field), text::line(value));
                lines.push(format!("{:<10}{field}: {value}", "field"));
            }
        }
    }
    lines
}

fn full_letter_json(
    letter: &DeadLetter,
    message: &Result<Message, Undecodable>,
) -> serde_json::Value {
    let mut document = letter_json(letter);
    match message {
        Ok(message) => {
            document["kind"] = message.kind().as_str().into();
            document["name"] = message.name().as_str().into();
            document["headers"] = json::headers(message.headers());
            document["payload"] = json::bytes(message.payload());
        }
        Err(undecodable) => {
            document["undecodable"] = undecodable.reason.as_str().into();
            document["fields"] = json::fields(&undecodable.fields);
        }
    }
    document
}
