//! Tests that a mistake in the set-up panics with the location of the mistake.

use campanile::{Kind, http_bridge::Gateway, transport::memory::Memory};
use http::Method;

use crate::panics::panic_text;

fn gateway() -> Gateway<Memory> {
    Gateway::new(Memory::new()).task("a")
}

#[test]
fn a_mistake_in_the_set_up_panics_at_its_location() {
    assert_eq!(
        panic_text(|| gateway().rpc("a")),
        "POST /a is routed already"
    );
    let text = panic_text(|| gateway().route(Method::POST, "/%61", Kind::Rpc, "b"));
    assert_eq!(text, "POST /%61 is routed already");
    let text = panic_text(|| gateway().route(Method::GET, "b", Kind::Rpc, "b"));
    assert_eq!(text, "a path begins with a slash: \"b\"");
    assert_eq!(panic_text(|| gateway().event("")), "the name is empty");
    let text = panic_text(|| gateway().content_types("b", ["a/b"]));
    assert!(text.ends_with("the gateway has none to `b`"), "{text}");
    let text = panic_text(|| gateway().content_types("a", ["json"]));
    assert!(text.starts_with("`json` is no type of bodies"), "{text}");
    assert_eq!(
        panic_text(|| gateway().content_types("a", [])),
        "a route takes at least one type"
    );
    let text = panic_text(|| gateway().content_type("a\nb"));
    assert!(
        text.starts_with("a content type is visible ASCII"),
        "{text}"
    );
}
