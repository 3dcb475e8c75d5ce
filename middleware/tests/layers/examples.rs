//! Runs the examples.

use std::{path::PathBuf, process::Command};

/// Runs an example that cargo has built with this test, and returns its output.
fn output(name: &str) -> String {
    let mut path: PathBuf = std::env::current_exe().unwrap();
    path.pop();
    path.pop();
    path.push("examples");
    path.push(name);
    let ran = Command::new(path)
        .output()
        .expect("the example can be started");
    let stdout = String::from_utf8(ran.stdout).unwrap();
    let stderr = String::from_utf8_lossy(&ran.stderr);
    assert!(ran.status.success(), "{}\n{stdout}\n{stderr}", ran.status);
    stdout
}

#[test]
fn a_stack_settles_each_message_as_its_layers_say() {
    let output = output("stack");
    for line in [
        "task   import: item 1\n",
        "task   import: item 3\n",
        "rpc    price: 700\n",
        "rpc    report: the handler took too long (deadline)\n",
        "dead   the delivery failed for good: invalid digit found in string\n",
    ] {
        assert!(output.contains(line), "{line:?} is not in\n{output}");
    }
}
