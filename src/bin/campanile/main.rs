//! The program `campanile`, for the operators of an application.
//!
//! `docs/terminal.md` describes it. Each command is a module. [`show`] formats output for a
//! terminal and as JSON. [`CommandError`] decides the exit code.

mod args;
mod command_error;
mod confirm;
mod consumers;
mod dashboard;
mod dead;
mod describe;
mod groups;
mod pause;
mod scale;
mod schedules;
mod send;
mod show;
mod signals;
mod stats;
mod tail;
mod target;
mod tasks;
#[cfg(feature = "redis-rustls")]
mod tls_args;
mod top;
mod workers;

use std::process::ExitCode;

use clap::Parser;

use self::{
    args::{Arguments, Command},
    command_error::CommandError,
    show::Out,
    workers::WorkersCommand,
};

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    // Output to a full pipe blocks this thread. The worker thread continues to read from the
    // server.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build();
    let result = match runtime {
        Ok(runtime) => {
            let result = runtime.block_on(run(arguments));
            runtime.shutdown_background();
            result
        }
        Err(error) => Err(error.into()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

async fn run(arguments: Arguments) -> Result<(), CommandError> {
    let out = Out::new(arguments.target.json);
    let target = &arguments.target;
    match arguments.command {
        Command::Stats(stats) => stats.run(target, &out).await,
        Command::Groups(groups) => groups.run(target, &out).await,
        Command::Consumers(consumers) => consumers.run(target, &out).await,
        Command::Workers { command } => {
            let command = command.unwrap_or(WorkersCommand::List);
            command.run(target, &out).await
        }
        Command::Top(top) => top.run(target, &out).await,
        Command::Describe(describe) => describe.run(target, &out).await,
        Command::Dashboard(dashboard) => dashboard.run(target, &out).await,
        Command::Scale(scale) => scale.run(target, &out).await,
        Command::Dead(dead) => dead.run(target, &out).await,
        Command::Tasks(tasks) => tasks.run(target, &out).await,
        Command::Pause(pause) => pause.run(target, &out).await,
        Command::Resume(resume) => resume.run(target, &out).await,
        Command::Pauses(pauses) => pauses.run(target, &out).await,
        Command::Purge(purge) => purge.run(target, &out).await,
        Command::Schedules(schedules) => schedules.run(target, &out).await,
        Command::Send(send) => send.run(target, &out).await,
        Command::Tail(tail) => tail.run(target, &out).await,
    }
}
