//! `campanile pause`, `campanile resume`, `campanile pauses` and `campanile purge`

use campanile::transport::{Control, GroupStats, Pause, PauseTarget};
use clap::Args;
use serde_json::{Value, json};

use crate::{
    command_error::CommandError,
    confirm::Confirm,
    show::{Out, Table, json, text},
    target::Target,
};

/// The subject of a pause: the group of `--group`, unless one of these options is given.
#[derive(Debug, Args)]
#[group(multiple = false)]
struct PauseSubject {
    /// Only the tasks and requests with this name.
    #[arg(long)]
    name: Option<String>,
    /// All groups of the stream.
    #[arg(long)]
    all_groups: bool,
}

impl PauseSubject {
    fn target(&self) -> PauseTarget {
        match &self.name {
            Some(name) => PauseTarget::Name(name.as_str().into()),
            None if self.all_groups => PauseTarget::Stream,
            None => PauseTarget::Group,
        }
    }

    /// Connects. The group must exist, unless the pause is for all groups.
    async fn connect(&self, target: &Target) -> Result<Control, CommandError> {
        Ok(match self.all_groups {
            true => target.connect().await?.control(),
            false => target.connect_to_group().await?.0.control(),
        })
    }
}

#[derive(Debug, Args)]
pub(crate) struct PauseCommand {
    #[command(flatten)]
    subject: PauseSubject,
    /// The reason, which `campanile pauses` shows.
    #[arg(long, default_value = "paused from a terminal")]
    reason: String,
}

impl PauseCommand {
    pub(crate) async fn run(self, target: &Target, out: &Out) -> Result<(), CommandError> {
        let control = self.subject.connect(target).await?;
        let subject = self.subject.target();
        let is_new = control.pause(subject.clone(), &self.reason).await?;
        match out.json {
            true => out.write_document(&json!({ "paused": title(&subject), "new": is_new })),
            false if is_new => out.write_lines([format!("paused {}", title(&subject))]),
            false => out.write_lines([format!("{} was paused already", title(&subject))]),
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct ResumeCommand {
    #[command(flatten)]
    subject: PauseSubject,
}

impl ResumeCommand {
    pub(crate) async fn run(self, target: &Target, out: &Out) -> Result<(), CommandError> {
        let control = self.subject.connect(target).await?;
        let subject = self.subject.target();
        match control.resume(subject.clone()).await? {
            true if out.json => out.write_document(&json!({ "resumed": title(&subject) })),
            true => out.write_lines([format!("resumed {}", title(&subject))]),
            false => Err(CommandError::Missing(format!(
                "{} is not paused; `campanile pauses` lists what is",
                title(&subject)
            ))),
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct PausesCommand {}

impl PausesCommand {
    pub(crate) async fn run(self, target: &Target, out: &Out) -> Result<(), CommandError> {
        let pauses = target
            .connect_to_group()
            .await?
            .0
            .control()
            .pauses()
            .await?;
        if out.json {
            return out.write_document(&pauses.iter().map(pause_json).collect());
        }
        if pauses.is_empty() {
            return out.write_lines(["nothing is paused"]);
        }
        let mut table = Table::new(&["PAUSED", "SINCE", "REASON"]);
        for pause in pauses {
            table.add_row([title(&pause.target), text::time(pause.since), pause.reason]);
        }
        out.write_lines(table.lines())
    }
}

#[derive(Debug, Args)]
pub(crate) struct PurgeCommand {
    #[command(flatten)]
    confirm: Confirm,
}

impl PurgeCommand {
    pub(crate) async fn run(self, target: &Target, out: &Out) -> Result<(), CommandError> {
        let (redis, group) = target.connect_to_group().await?;
        let stats = redis.stats().await?;
        let waiting = stats.group(&group).and_then(GroupStats::waiting);
        let waiting = waiting.map_or("an unknown number of".to_owned(), |it| it.to_string());
        let question =
            format!("Remove {waiting} waiting messages of the group `{group}` for good?");
        self.confirm.ask(&question).await?;
        let purged = redis.control().purge_waiting().await?;
        match out.json {
            true => out.write_document(&json!({ "purged": purged })),
            false => out.write_lines([format!("purged {purged}")]),
        }
    }
}

fn title(target: &PauseTarget) -> String {
    match target {
        PauseTarget::Stream => "all groups of the stream".to_owned(),
        PauseTarget::Group => "the group".to_owned(),
        PauseTarget::Name(name) => format!("the name {}", text::line(&**name)),
        other => format!("{other:?}"),
    }
}

fn pause_json(pause: &Pause) -> Value {
    json!({
        "paused": title(&pause.target),
        "since": json::time(pause.since),
        "reason": pause.reason,
    })
}
