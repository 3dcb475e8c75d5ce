//! Tests of the compiler's messages for mistakes in handlers and routers.
//!
//! The expected texts beside `ui/*.rs` are those of the toolchain in use. `TRYBUILD=overwrite`
//! writes the new texts; read them as a newcomer would.

#[test]
fn mistakes_in_handlers_and_routers_are_explained() {
    trybuild::TestCases::new().compile_fail("ui/*.rs");
}
