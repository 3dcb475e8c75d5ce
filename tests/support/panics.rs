//! The texts and the locations of panics.

// Each test program uses only a part of this module.
#![allow(dead_code)]

use std::{
    any::Any,
    panic::{self, AssertUnwindSafe, Location},
    sync::{Arc, Mutex, PoisonError},
};

/// Calls `build`, which must panic. The panic's location must be that of the caller, or at most two
/// lines below. Returns the text of the panic.
#[track_caller]
pub(crate) fn panic_text<T>(build: impl FnOnce() -> T) -> String {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let caller = Location::caller();
    let panicked_at = Arc::new(Mutex::new(None));
    let seen = panicked_at.clone();
    // Other tests may panic on their threads meanwhile.
    let here = std::thread::current().id();
    let before = Arc::new(panic::take_hook());
    let others = before.clone();
    panic::set_hook(Box::new(move |info| {
        if std::thread::current().id() != here {
            return others(info);
        }
        let location = info.location().unwrap();
        *seen.lock().unwrap() = Some((location.file().to_owned(), location.line()));
    }));
    let outcome = panic::catch_unwind(AssertUnwindSafe(|| drop(build())));
    panic::set_hook(Box::new(move |info| before(info)));
    let payload = outcome.expect_err("`build` must panic");
    let (file, line) = panicked_at.lock().unwrap().take().unwrap();
    assert_eq!(file, caller.file());
    let lines = caller.line()..caller.line() + 3;
    assert!(lines.contains(&line), "line {line} is not in {lines:?}");
    text_of(payload)
}

/// The text in the payload of a panic.
pub(crate) fn text_of(payload: Box<dyn Any + Send>) -> String {
    match payload.downcast::<String>() {
        Ok(text) => *text,
        Err(payload) => payload.downcast_ref::<&str>().unwrap().to_string(),
    }
}
