//! `campanile dead`

mod act;
mod list;
mod show;

use campanile::{
    Message,
    transport::{DeadLetter, DeadLetters, Undecodable},
};
use clap::Subcommand;

use crate::{command_error::CommandError, show::Out, target::Target};

#[derive(Debug, Subcommand)]
pub(crate) enum DeadCommand {
    /// Lists the dead letters, the oldest first, in pages.
    List(list::List),
    /// Shows a dead letter with its headers and its payload.
    Show(show::Show),
    /// Delivers dead letters again, to their group and from their first attempt.
    Replay(act::Replay),
    /// Deletes dead letters.
    Purge(act::Purge),
}

impl DeadCommand {
    pub(crate) async fn run(self, target: &Target, out: &Out) -> Result<(), CommandError> {
        let redis = target.connect_to_dead_letters().await?;
        let dead_letters: DeadLetters = redis.dead_letters();
        match self {
            DeadCommand::List(list) => list.run(&dead_letters, out).await,
            DeadCommand::Show(show) => show.run(&dead_letters, out).await,
            DeadCommand::Replay(replay) => replay.run(&dead_letters, out).await,
            DeadCommand::Purge(purge) => purge.run(&dead_letters, out).await,
        }
    }
}

/// Decodes the message of a letter. Also returns its kind and its name, as text for people.
fn decode_with_title(letter: &DeadLetter) -> (Result<Message, Undecodable>, String, String) {
    let message = letter.message();
    let (kind, name) = match &message {
        Ok(message) => (message.kind().to_string(), message.name().to_string()),
        Err(_) => ("-".into(), "(no message)".into()),
    };
    (message, kind, name)
}
