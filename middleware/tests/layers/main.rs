//! Tests of the layers around clients and through `serve`, on both transports. Runs the crate's
//! examples too.

mod examples;
mod keyed;
#[path = "../../../tests/support/logs.rs"]
mod logs;
mod metrics;
#[path = "../../../tests/support/panics.rs"]
mod panics;
mod policy;
mod prometheus;
mod stack;
#[path = "../../../tests/support/mod.rs"]
mod support;
mod transports;
