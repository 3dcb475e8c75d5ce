//! A server's wall clock that a test can step while the server runs.
//!
//! A few lines of C replace the C library's clock functions (`LD_PRELOAD`) and add an offset, which
//! the server shares with the test through a mapped file. The monotonic clock does not change, as
//! when an administrator or NTP steps the clock of a machine.

use std::{
    fs,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::Command,
};

use super::shim;

const SHIM: &str = r#"
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static volatile int64_t *offset; /* in milliseconds */

__attribute__((constructor)) static void map_offset(void) {
    int file = open(getenv("CLOCK_OFFSET_FILE"), O_RDONLY);
    void *mapped = mmap(NULL, sizeof(int64_t), PROT_READ, MAP_SHARED, file, 0);
    if (file < 0 || mapped == MAP_FAILED) abort();
    offset = mapped;
}

int clock_gettime(clockid_t clock, struct timespec *time) {
    int result = syscall(SYS_clock_gettime, clock, time);
    if (result == 0 && offset && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) {
        int64_t now = time->tv_sec * 1000000000LL + time->tv_nsec + *offset * 1000000LL;
        time->tv_sec = now / 1000000000LL;
        time->tv_nsec = now % 1000000000LL;
    }
    return result;
}

int gettimeofday(struct timeval *restrict out, void *restrict zone) {
    struct timespec time;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &time);
    out->tv_sec = time.tv_sec;
    out->tv_usec = time.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *out) {
    struct timespec time;
    clock_gettime(CLOCK_REALTIME, &time);
    if (out) *out = time.tv_sec;
    return time.tv_sec;
}
"#;

/// The file with the offset, in the server's data directory.
fn offset(dir: &Path) -> PathBuf {
    dir.join("clock-offset")
}

/// Builds the replacement of the clock functions, and has the server start with it.
///
/// # Panics
/// If there is no C compiler.
pub(super) fn preload(server: &mut Command, dir: &Path) {
    if !offset(dir).exists() {
        fs::write(offset(dir), 0_i64.to_ne_bytes()).expect("the offset is written");
    }
    shim::preload(server, &dir.join("clock.so"), SHIM);
    server.env("CLOCK_OFFSET_FILE", offset(dir));
}

/// Sets the difference of the server's clock from the machine's, in milliseconds.
pub(super) fn set(dir: &Path, milliseconds: i64) {
    let file = fs::OpenOptions::new().write(true).open(offset(dir));
    // Written in place: the server has mapped this file, and would not see a new file of that name.
    let written = file.and_then(|file| file.write_all_at(&milliseconds.to_ne_bytes(), 0));
    written.expect("the offset is written");
}
