//! Panics of mistakes in the set-up have the location of the mistake.

use std::{
    panic::{self, AssertUnwindSafe, Location},
    sync::{Arc, Mutex},
};

use campanile::{Kind, http_bridge::Gateway, transport::memory::Memory};
use http::Method;

/// Returns the text of the panic of `build`, whose location has to be `place`.
fn mistake(place: &'static Location<'static>, build: impl FnOnce()) -> String {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _guard = ONE_AT_A_TIME
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner());
    let seen = Arc::new(Mutex::new(None));
    let before = Arc::new(panic::take_hook());
    let here = std::thread::current().id();
    panic::set_hook(Box::new({
        let (seen, before) = (seen.clone(), before.clone());
        move |info| {
            if std::thread::current().id() != here {
                return before(info);
            }
            *seen.lock().unwrap() = info.location().map(ToString::to_string);
        }
    }));
    let outcome = panic::catch_unwind(AssertUnwindSafe(build));
    panic::set_hook(Box::new(move |info| before(info)));
    let payload = outcome.expect_err("a mistake that was not noticed");
    let at = seen.lock().unwrap().take().unwrap();
    let line = format!("{}:{}:", place.file(), place.line());
    assert!(at.starts_with(&line), "{at} is not {line}");
    let text = payload.downcast_ref::<String>().cloned();
    text.unwrap_or_else(|| payload.downcast_ref::<&str>().unwrap().to_string())
}

macro_rules! mistake {
    ($build:expr) => {{
        #[track_caller]
        fn here() -> &'static Location<'static> {
            Location::caller()
        }
        mistake(here(), || drop($build))
    }};
}

fn gateway() -> Gateway<Memory> {
    Gateway::new(Memory::new()).task("a")
}

#[test]
fn a_mistake_in_the_set_up_is_shown_where_it_is() {
    assert_eq!(mistake!(gateway().rpc("a")), "POST /a is routed already");
    let text = mistake!(gateway().route(Method::POST, "/%61", Kind::Rpc, "b"));
    assert_eq!(text, "POST /%61 is routed already");
    let text = mistake!(gateway().route(Method::GET, "b", Kind::Rpc, "b"));
    assert_eq!(text, "a path begins with a slash: \"b\"");
    assert_eq!(mistake!(gateway().event("")), "the name is empty");
    let text = mistake!(gateway().content_type("a\nb"));
    assert!(
        text.starts_with("a content type is visible ASCII"),
        "{text}"
    );
}
