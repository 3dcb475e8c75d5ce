//! What the compiler tells somebody who got a handler or a router wrong.
//!
//! The texts beside `ui/*.rs` are those of the toolchain in use; `TRYBUILD=overwrite` renews
//! them. Read what it wrote as a newcomer would.

#[test]
fn mistakes_in_handlers_and_routers_are_explained() {
    trybuild::TestCases::new().compile_fail("ui/*.rs");
}
