//! The command line.

use clap::{Parser, Subcommand};

use crate::{
    consumers::ConsumersCommand,
    dashboard::DashboardCommand,
    dead::DeadCommand,
    describe::Describe,
    groups::GroupsCommand,
    pause::{PauseCommand, PausesCommand, PurgeCommand, ResumeCommand},
    scale::Scale,
    schedules::SchedulesCommand,
    send::Send,
    stats::Stats,
    tail::TailCommand,
    target::Target,
    tasks::TasksCommand,
    top::Top,
    workers::WorkersCommand,
};

const EXIT_CODES: &str = "\
Exit codes:
  0    success; also if the output pipe was closed, or Ctrl-C ended a live view
  1    failed
  2    wrong usage, or a confirmation is missing
  3    no connection to Redis: nothing was done
  4    not found: an id, a name, a group or a stream; or the stream has several groups and --group was not given
  5    the request was answered with an error
  130  Ctrl-C ended the command early";

/// Inspects and sends the tasks, events and requests of Campanile on a Redis server.
#[derive(Debug, Parser)]
#[command(name = "campanile", version, after_help = EXIT_CODES)]
pub(crate) struct Arguments {
    #[command(flatten)]
    pub(crate) target: Target,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Shows statistics of the stream and its groups.
    Stats(Stats),
    /// Counts the messages that wait for the group, for a program that scales its workers.
    Scale(Scale),
    /// Lists the groups of the stream, and drops groups.
    #[command(subcommand)]
    Groups(GroupsCommand),
    /// Lists the consumers of the group, and drops consumers.
    #[command(subcommand)]
    Consumers(ConsumersCommand),
    /// Lists the workers of the group, and gives orders to single workers.
    Workers {
        #[command(subcommand)]
        command: Option<WorkersCommand>,
    },
    /// Shows the workers and what they run, once a second, until q or Ctrl-C.
    ///
    /// Without a terminal it shows them once.
    Top(Top),
    /// Shows the routes of the running workers, with the types of their payloads.
    Describe(Describe),
    /// Lists, shows, replays and purges the dead letters of the group.
    #[command(subcommand)]
    Dead(DeadCommand),
    /// Serves a dashboard for browsers.
    Dashboard(DashboardCommand),
    /// Shows, lists, watches and cancels tasks that are tracked or unique.
    #[command(subcommand)]
    Tasks(TasksCommand),
    /// Pauses the group, all groups of the stream, or a name. All workers follow within about a second.
    Pause(PauseCommand),
    /// Ends a pause.
    Resume(ResumeCommand),
    /// Lists what is paused.
    Pauses(PausesCommand),
    /// Removes the messages that wait for the group.
    Purge(PurgeCommand),
    /// Lists, runs, pauses and removes the schedules of the stream.
    #[command(subcommand)]
    Schedules(SchedulesCommand),
    /// Sends a task, an event or a request.
    #[command(subcommand)]
    Send(Send),
    /// Shows messages as they arrive, without consuming them.
    #[command(subcommand)]
    Tail(TailCommand),
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Arguments::command().debug_assert();
    }
}
