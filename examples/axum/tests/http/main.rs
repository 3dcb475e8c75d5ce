//! Tests of the example, and of the `http` feature with axum and tower-http.

mod example;
mod layers;
mod routers;
#[path = "../../../../tests/support/mod.rs"]
mod support;
