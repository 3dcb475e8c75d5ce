//! Runs examples as processes.

use std::{
    path::PathBuf,
    process::{Output, Stdio},
    time::Duration,
};

use tokio::process::Command;

use super::support::within;

pub(crate) const SOON: Duration = Duration::from_secs(60);

/// An example that cargo has built beside this test.
pub(crate) fn example(name: &str) -> Command {
    let mut path: PathBuf = std::env::current_exe().unwrap();
    path.pop();
    path.pop();
    path.push("examples");
    path.push(name);
    let mut command = Command::new(path);
    command
        .env_remove("REDIS_URL")
        .stdin(Stdio::null())
        .kill_on_drop(true);
    command
}

/// Runs a command, which must succeed. Returns its output.
pub(crate) async fn output(mut command: Command) -> String {
    let ran = within(SOON, command.output()).await;
    let Output {
        status,
        stdout,
        stderr,
    } = ran.expect("the program can be started");
    let stdout = String::from_utf8(stdout).unwrap();
    assert!(
        status.success(),
        "{status}\n{stdout}\n{}",
        String::from_utf8_lossy(&stderr)
    );
    stdout
}

/// Asserts that the output contains each of these texts.
pub(crate) fn shows(output: &str, lines: &[&str]) {
    for line in lines {
        assert!(output.contains(line), "{line:?} is not in\n{output}");
    }
}
