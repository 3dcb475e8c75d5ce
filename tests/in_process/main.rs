//! Tests that start no server and no other process.

mod batch;
mod bounds;
mod client;
#[cfg(feature = "dashboard")]
mod dashboard;
mod errors;
mod extract;
mod giving_up;
mod guarantees;
#[cfg(feature = "http")]
mod http;
mod layers;
#[path = "../support/logs.rs"]
mod logs;
mod memory;
#[cfg(feature = "conformance")]
mod own_transport;
mod owned;
#[path = "../support/panics.rs"]
mod panics;
mod properties;
mod public_paths;
mod routing;
mod serve;
#[cfg(feature = "redis")]
#[path = "../support/mod.rs"]
mod support;
#[cfg(feature = "testing")]
mod testing;
#[cfg(feature = "redis")]
mod tower;
mod workers;
