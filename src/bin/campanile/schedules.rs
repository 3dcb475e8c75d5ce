//! `campanile schedules`

use std::time::SystemTime;

use campanile::{
    Name,
    transport::{ScheduleRun, ScheduleStatus},
};
use clap::Subcommand;
use serde_json::{Value, json};

use crate::{
    command_error::CommandError,
    show::{
        Out, Table, json,
        text::{self, fact},
    },
    target::Target,
};

/// The number of next ticks that `show` shows.
const NEXT_TICKS: usize = 5;

#[derive(Debug, Subcommand)]
pub(crate) enum SchedulesCommand {
    /// Lists the schedules of the stream, by name.
    List,
    /// Shows a schedule with its next ticks and its last runs.
    Show {
        /// The name of the schedule.
        name: String,
    },
    /// Sends the task of a schedule now. Its ticks stay as they are.
    Run {
        /// The name of the schedule.
        name: String,
    },
    /// Pauses a schedule: its ticks send nothing until it is resumed.
    Pause {
        /// The name of the schedule.
        name: String,
    },
    /// Resumes a paused schedule with its next tick.
    Resume {
        /// The name of the schedule.
        name: String,
    },
    /// Removes a schedule. Tasks that it has sent remain.
    ///
    /// A schedule that is in the code of an application comes back with the next start of the application.
    /// To stop it for longer, pause it.
    Remove {
        /// The name of the schedule.
        name: String,
    },
}

impl SchedulesCommand {
    pub(crate) async fn run(self, target: &Target, out: &Out) -> Result<(), CommandError> {
        // Does not check the stream and the group: a schedule may be stored before they exist.
        let redis = target.connect().await?;
        let schedules = redis.schedules();
        let (name, is_found, past_verb) = match self {
            Self::List => return list(&schedules.list().await?, out),
            Self::Show { name } => {
                let status = schedules.get(&Name::from(&*name)).await?;
                let status = status.ok_or_else(|| missing_error(&name))?;
                return match out.json {
                    true => out.write_document(&schedule_json(&status)),
                    false => out.write_lines(lines(&status)),
                };
            }
            Self::Run { name } => {
                let run = schedules.run_now(&Name::from(&*name)).await?;
                let run = run.ok_or_else(|| missing_error(&name))?;
                return match (out.json, run.is_skipped) {
                    (true, _) => out.write_document(&run_json(&run)),
                    (false, false) => out.write_lines([format!("sent {}", run.task)]),
                    (false, true) => out.write_lines([format!(
                        "nothing was sent: the task {} of the schedule has not ended",
                        run.task
                    )]),
                };
            }
            Self::Pause { name } => {
                let found = schedules.pause(&Name::from(&*name)).await?;
                (name, found, "paused")
            }
            Self::Resume { name } => {
                let found = schedules.resume(&Name::from(&*name)).await?;
                (name, found, "resumed")
            }
            Self::Remove { name } => {
                let found = schedules.remove(&Name::from(&*name)).await?;
                (name, found, "removed")
            }
        };
        match is_found {
            false => Err(missing_error(&name)),
            true if out.json => out.write_document(&json!({ past_verb: name })),
            true => out.write_lines([format!("{past_verb} {}", text::line(&name))]),
        }
    }
}

fn missing_error(name: &str) -> CommandError {
    let name = text::line(name);
    CommandError::Missing(format!(
        "the stream has no schedule `{name}`; `campanile schedules list` lists them, and --stream names \
         another stream"
    ))
}

fn list(schedules: &[ScheduleStatus], out: &Out) -> Result<(), CommandError> {
    if out.json {
        return out.write_document(&schedules.iter().map(schedule_json).collect());
    }
    if schedules.is_empty() {
        return out.write_lines(["no schedules"]);
    }
    let mut table = Table::new(&["NAME", "SCHEDULE", "TASK", "NEXT", "LAST RUN"]);
    for schedule in schedules {
        let (times, task) = definition(schedule);
        let next = match schedule.next_ticks(1).first() {
            Some(tick) => text::time(*tick),
            None if schedule.paused => "paused".into(),
            None => "-".into(),
        };
        let last = schedule.runs.last();
        let last = last.map_or_else(|| "-".into(), |run| text::time(run.at));
        table.add_row([schedule.name.to_string(), times, task, next, last]);
    }
    out.write_lines(table.lines())
}

/// Returns the cells for the times of a schedule and for the name of its task.
fn definition(schedule: &ScheduleStatus) -> (String, String) {
    match &schedule.task {
        Ok(task) => (task.schedule().to_string(), task.task_name().to_owned()),
        Err(_) => ("?".into(), "?".into()),
    }
}

fn lines(schedule: &ScheduleStatus) -> Vec<String> {
    let mut lines = vec![
        fact("name", &schedule.name),
        fact("version", &schedule.version.to_string()),
        fact("group", &schedule.group),
    ];
    match &schedule.task {
        Ok(task) => {
            lines.push(fact("schedule", &task.schedule().to_string()));
            lines.push(fact("missed", task.schedule().missed_rule().as_str()));
            lines.push(fact("task", task.task_name()));
            if task.skips_while_running() {
                lines.push(fact(
                    "option",
                    "skips a tick while its last task has not ended",
                ));
            }
        }
        Err(fault) => lines.push(fact("fault", fault)),
    }
    if schedule.paused {
        lines.push(fact("state", "paused"));
    }
    let next = schedule.next_ticks(NEXT_TICKS).into_iter();
    lines.extend(next.map(|tick| fact("next", &text::time(tick))));
    lines.extend(schedule.runs.iter().rev().map(|run| {
        let outcome = match run.is_skipped {
            true => "skipped, since this task had not ended:",
            false => "sent",
        };
        let by_hand = if run.is_manual { " (by hand)" } else { "" };
        let time = text::time(run.at);
        fact("run", &format!("{time} {outcome} {}{by_hand}", run.task))
    }));
    lines
}

fn schedule_json(schedule: &ScheduleStatus) -> Value {
    let task = schedule.task.as_ref().ok();
    let next = schedule.next_ticks(NEXT_TICKS);
    json!({
        "name": &*schedule.name,
        "version": schedule.version,
        "group": &*schedule.group,
        "schedule": task.map(|task| task.schedule().to_string()),
        "missed": task.map(|task| task.schedule().missed_rule().as_str()),
        "task": task.map(|task| task.task_name()),
        "skip_while_running": task.map(|task| task.skips_while_running()),
        "fault": schedule.task.as_ref().err(),
        "paused": schedule.paused,
        "last_tick_ms": json::time(schedule.last_tick),
        "next_ms": times(&next),
        "runs": schedule.runs.iter().map(run_json).collect::<Value>(),
    })
}

fn times(times: &[SystemTime]) -> Value {
    times.iter().map(|time| json!(json::time(*time))).collect()
}

fn run_json(run: &ScheduleRun) -> Value {
    json!({
        "at_ms": json::time(run.at),
        "task": &*run.task,
        "skipped": run.is_skipped,
        "manual": run.is_manual,
    })
}
