//! Asking before something is destroyed.

use std::io::{self, IsTerminal, Write};

use clap::Args;

use crate::{failure::Failure, show::text, signals};

// What must be confirmed.
#[derive(Debug, Args)]
pub(crate) struct Confirm {
    /// Does not ask. Needed where there is no terminal to ask on.
    #[arg(long, short)]
    yes: bool,
}

impl Confirm {
    /// Asks `question`, unless that was answered on the command line.
    pub(crate) async fn ask(&self, question: &str) -> Result<(), Failure> {
        if self.yes {
            return Ok(());
        }
        if !io::stdin().is_terminal() {
            return Err(Failure::Usage(
                "this has to be confirmed, and there is no terminal to ask on; pass --yes".into(),
            ));
        }
        // Before the question: what it is answered with counts from then on.
        let ended = signals::ended()?;
        let mut stderr = io::stderr();
        write!(stderr, "{} [y/N] ", text::line(question))?;
        stderr.flush()?;
        let answer = tokio::task::spawn_blocking(|| {
            let mut answer = String::new();
            io::stdin().read_line(&mut answer).map(|_| answer)
        });
        let answer = tokio::select! {
            biased;
            answer = answer => answer.map_err(io::Error::other)??,
            () = ended.cancelled() => {
                writeln!(stderr)?;
                return Err(Failure::Interrupted("nothing was done".into()));
            }
        };
        if !answer.ends_with('\n') {
            // The end of the input, on the line of the question.
            let _ = writeln!(stderr);
        }
        match answer.trim() {
            "y" | "Y" | "yes" | "Yes" => Ok(()),
            _ => Err(Failure::Usage("not confirmed; nothing was done".into())),
        }
    }
}
