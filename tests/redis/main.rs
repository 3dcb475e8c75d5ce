//! Tests against real Redis servers. Each test starts its own server.
#![cfg(feature = "redis")]

mod bad_input;
#[cfg(feature = "conformance")]
mod conformance;
mod credentials;
#[cfg(feature = "dashboard")]
mod dashboard;
#[cfg(feature = "http")]
mod http;
#[path = "../support/logs.rs"]
mod logs;
mod namespaces;
#[path = "../support/panics.rs"]
mod panics;
#[cfg(feature = "schedule")]
mod promises;
mod rights;
#[cfg(feature = "schedule")]
mod schedules;
mod script;
mod send;
mod server;
mod source;
#[path = "../support/mod.rs"]
mod support;
mod tower;
mod versions;
mod wire;

use std::time::Duration;

use support::within;

const SECOND: Duration = Duration::from_secs(1);
