//! Libraries in C that replace functions of the C library in another process (`LD_PRELOAD`).

use std::{fs, io::ErrorKind, path::Path, process::Command};

/// Builds a library from this source, unless it exists, and has a process start with it. The source
/// is kept beside it.
///
/// # Panics
/// If there is no C compiler.
pub(super) fn preload(process: &mut Command, library: &Path, source: &str) {
    if !library.exists() {
        let file = library.with_extension("c");
        fs::write(&file, source).expect("the source is written");
        let mut cc = Command::new("cc");
        cc.args(["-O1", "-shared", "-fPIC", "-o"]);
        let built = match cc.arg(library).arg(&file).output() {
            Ok(built) => built,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                panic!("cc is missing; install it: apt-get install gcc libc6-dev")
            }
            Err(error) => panic!("cc does not run: {error}"),
        };
        let said = String::from_utf8_lossy(&built.stderr);
        assert!(built.status.success(), "the library was not built:\n{said}");
    }
    process.env("LD_PRELOAD", library);
}
