//! Properties of the options of a sender.

use std::time::{Duration, SystemTime};

use campanile::{Deadline, Due, Kind, Message, transport::memory::Memory};
use futures_util::FutureExt;
use proptest::prelude::*;
use tower::ServiceExt;

use super::any_headers;

/// A time at any distance from now; now if the platform cannot represent it.
fn any_time() -> impl Strategy<Value = SystemTime> {
    (any::<bool>(), any::<Duration>()).prop_map(|(past, distance)| {
        let now = SystemTime::now();
        let time = if past {
            now.checked_sub(distance)
        } else {
            now.checked_add(distance)
        };
        time.unwrap_or(now)
    })
}

proptest! {
    #[test]
    fn invalid_options_of_a_message_are_refused_with_a_reason(
        event: bool,
        name in "\\PC{0,40}",
        times in 0..60usize,
        key in proptest::option::of("\\PC{0,40}"),
        life in proptest::option::of(any::<Duration>()),
        due in proptest::option::of(prop_oneof![
            any::<Duration>().prop_map(Due::After),
            any_time().prop_map(Due::At),
        ]),
        headers in any_headers(),
    ) {
        let kind = if event { Kind::Event } else { Kind::Task };
        let mut message = Message::new(kind, name.repeat(times), "");
        *message.headers_mut() = headers;
        let parts = message.parts_mut();
        parts.idempotency_key = key.map(|key| key.repeat(times).into());
        parts.deadline = life.map(Deadline::after);
        parts.due = due;
        let name_is_wrong = !(1..=1024).contains(&parts.name.len());
        let sent = Memory::new().oneshot(message).now_or_never().expect("memory accepts at once");
        match sent {
            Ok(reply) => {
                prop_assert!(!name_is_wrong);
                prop_assert_eq!(reply.receipt().is_some(), kind == Kind::Task);
            }
            Err(error) => {
                let text = error.to_string();
                prop_assert!(error.is_invalid() || error.is_timeout(), "{}", text);
                prop_assert!(text.len() > 10 && text.len() < 200 && !text.ends_with('.'), "{}", text);
                prop_assert!(!name_is_wrong || text.starts_with("the name is"), "{}", text);
            }
        }
    }

    #[test]
    fn a_deadline_is_never_further_away_than_it_was_asked_for(after: Duration) {
        prop_assert!(Deadline::after(after).remaining() <= after);
    }
}
