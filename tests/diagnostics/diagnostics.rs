//! The compiler's messages for mistakes in handlers and routers.
//!
//! The texts beside `ui/*.rs` are those of the toolchain in use; `TRYBUILD=overwrite` renews them.
//! Read the new ones as a newcomer would.

#[test]
fn mistakes_in_handlers_and_routers_are_explained() {
    trybuild::TestCases::new().compile_fail("ui/*.rs");
}
