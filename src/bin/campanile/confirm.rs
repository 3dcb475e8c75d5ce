//! Asks for confirmation of a destructive command.

use std::io::{self, IsTerminal, Write};

use clap::Args;

use crate::{command_error::CommandError, show::text, signals};

// The flag `--yes` of commands that ask for a confirmation.
#[derive(Debug, Args)]
pub(crate) struct Confirm {
    /// Does not ask. Required without a terminal.
    #[arg(long, short)]
    yes: bool,
}

impl Confirm {
    /// Asks `question`, unless `--yes` was given.
    pub(crate) async fn ask(&self, question: &str) -> Result<(), CommandError> {
        if self.yes {
            return Ok(());
        }
        if !io::stdin().is_terminal() {
            return Err(CommandError::Usage(
                "this needs a confirmation, and there is no terminal to ask on; pass --yes".into(),
            ));
        }
        // Listens for signals before the question is asked, so that Ctrl-C ends the question.
        let interrupted = signals::cancel_on_interrupt()?;
        let mut stderr = io::stderr();
        write!(stderr, "{} [y/N] ", text::line(question))?;
        stderr.flush()?;
        let reading = tokio::task::spawn_blocking(|| {
            let mut answer = String::new();
            io::stdin().read_line(&mut answer).map(|_| answer)
        });
        let answer = tokio::select! {
            biased;
            answer = reading => answer.map_err(io::Error::other)??,
            () = interrupted.cancelled() => {
                writeln!(stderr)?;
                return Err(CommandError::Interrupted("nothing was done".into()));
            }
        };
        if !answer.ends_with('\n') {
            // The input has ended without a line feed, so the cursor is still on the line of the
            // question.
            let _ = writeln!(stderr);
        }
        match answer.trim() {
            "y" | "Y" | "yes" | "Yes" => Ok(()),
            _ => Err(CommandError::Usage(
                "not confirmed; nothing was done".into(),
            )),
        }
    }
}
