//! `campanile dead replay` and `campanile dead purge`

use std::io::{self, IsTerminal, Write};

use campanile::{
    DeadLetterId,
    transport::{Action, DeadLetters, Selection, Steps},
};
use clap::Args;
use serde_json::json;

use crate::{
    command_error::{CommandError, note},
    confirm::Confirm,
    show::{Out, text},
    signals,
};

// The selected dead letters.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct LetterSelection {
    /// The letters with these ids.
    #[arg(value_name = "ID")]
    ids: Vec<String>,
    /// The letters whose messages have this name.
    #[arg(long)]
    name: Option<String>,
    /// All letters that exist at the start.
    #[arg(long)]
    all: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Replay {
    #[command(flatten)]
    letters: LetterSelection,
    #[command(flatten)]
    confirm: Confirm,
}

#[derive(Debug, Args)]
pub(crate) struct Purge {
    #[command(flatten)]
    letters: LetterSelection,
    #[command(flatten)]
    confirm: Confirm,
}

impl Replay {
    /// A replay destroys nothing, so it needs a confirmation only if it replays all letters.
    pub(crate) async fn run(self, dead: &DeadLetters, out: &Out) -> Result<(), CommandError> {
        if self.letters.all {
            let count = dead.count().await?;
            self.confirm
                .ask(&format!("Replay all {count} dead letters?"))
                .await?;
        }
        self.letters.act(Action::Replay, dead, out).await
    }
}

impl Purge {
    pub(crate) async fn run(self, dead: &DeadLetters, out: &Out) -> Result<(), CommandError> {
        let description = match (&self.letters.name, self.letters.ids.len()) {
            (Some(name), _) => format!("all dead letters named {name}"),
            (None, 0) => format!("all {} dead letters", dead.count().await?),
            (None, 1) => "this dead letter".into(),
            (None, count) => format!("these {count} dead letters"),
        };
        self.confirm
            .ask(&format!("Delete {description} for good?"))
            .await?;
        self.letters.act(Action::Purge, dead, out).await
    }
}

impl LetterSelection {
    async fn act(self, action: Action, dead: &DeadLetters, out: &Out) -> Result<(), CommandError> {
        // `asked` is the number of ids. It is 0 if the letters are selected in another way.
        let (asked, name) = (self.ids.len() as u64, self.name.clone());
        let total = match (asked, &name) {
            (0, None) => Some(dead.count().await?),
            (0, Some(_)) => None,
            (asked, _) => Some(asked),
        };
        let word = match action {
            Action::Replay => "replayed",
            Action::Purge => "purged",
        };
        let mut steps = dead.steps(action, self.selection());
        let acted = run_steps(&mut steps, word, total).await?;
        write_outcome(out, word, acted, steps.skipped())?;
        // The command fails if selected letters do not exist, or were skipped.
        let skipped = steps.skipped().len() as u64;
        match name {
            Some(name) if acted + skipped == 0 => Err(CommandError::Missing(format!(
                "there is no dead letter named {name}"
            ))),
            None if acted + skipped < asked => Err(CommandError::Missing(format!(
                "{} of the {asked} dead letters are not there",
                asked - acted - skipped
            ))),
            _ if skipped > 0 => Err(CommandError::Failed(format!(
                "{skipped} dead letters cannot be replayed; purge them, or look at them with `dead show`"
            ))),
            _ => Ok(()),
        }
    }

    fn selection(self) -> Selection {
        match self.name {
            Some(name) => Selection::named(name),
            None if self.all => Selection::All,
            None => Selection::ids(self.ids),
        }
    }
}

/// Shows the progress on standard error, if that is a terminal.
struct ProgressLine {
    word: &'static str,
    total: Option<u64>,
    is_shown: bool,
}

impl ProgressLine {
    fn new(word: &'static str, total: Option<u64>) -> Self {
        let is_shown = false;
        Self {
            word,
            total,
            is_shown,
        }
    }

    fn show(&mut self, acted: u64) {
        if !io::stderr().is_terminal() {
            return;
        }
        self.is_shown = true;
        let of = self.total.map(|total| format!(" of {total}"));
        let line = format!("{acted}{} {}", of.unwrap_or_default(), self.word);
        let _ = write!(io::stderr(), "\r{}\x1b[K", text::line(line));
    }

    /// Removes the line from the terminal.
    fn clear(&mut self) {
        if std::mem::take(&mut self.is_shown) {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }
}

/// Runs the steps until they end, fail or are interrupted, and shows how far they are. Returns the
/// number of letters that were replayed or purged.
async fn run_steps(
    steps: &mut Steps,
    word: &'static str,
    total: Option<u64>,
) -> Result<u64, CommandError> {
    let interrupted = signals::cancel_on_interrupt()?;
    let mut progress = ProgressLine::new(word, total);
    let mut acted = 0;
    let outcome = loop {
        if interrupted.is_cancelled() {
            let text = format!("{acted} {word}, the others are left as they were");
            break Err(CommandError::Interrupted(text));
        }
        let next_step = steps.next();
        tokio::pin!(next_step);
        let step = tokio::select! {
            biased;
            step = &mut next_step => step,
            // Finishes the current step, so that its letters are counted.
            () = interrupted.cancelled() => {
                progress.clear();
                note("ends after this step; another Ctrl-C ends it at once");
                next_step.await
            }
        };
        match step {
            Ok(Some(letters)) => acted += letters,
            Ok(None) => break Ok(acted),
            Err(error) => {
                progress.clear();
                note(format!("{acted} {word} before it failed"));
                break Err(error.into());
            }
        }
        progress.show(acted);
    };
    progress.clear();
    outcome
}

/// Writes the number of letters that were replayed or purged, and the letters that were skipped.
fn write_outcome(
    out: &Out,
    word: &'static str,
    acted: u64,
    skipped: &[DeadLetterId],
) -> Result<(), CommandError> {
    match (out.json, skipped) {
        (true, []) => out.write_document(&json!({ word: acted }))?,
        (true, _) => {
            let ids: Vec<_> = skipped.iter().map(|id| id.as_str()).collect();
            out.write_document(&json!({ word: acted, "skipped": ids }))?;
        }
        (false, _) => out.write_lines([format!("{acted} {word}")])?,
    }
    for id in skipped {
        note(format!(
            "{id} cannot be replayed and was left: its fields cannot be read"
        ));
    }
    Ok(())
}
