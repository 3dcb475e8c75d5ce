//! The guide: pages about the whole library.
//!
//! - [Tour](tour): the parts of the library, and where to read about each.
//! - [Recipes](recipes): a small program for each common job.
//! - [An image service](image_service): a whole service, and the code that each of its features needs.
//! - [Choosing](choosing): when something else fits better.
//! - [Guarantees](guarantees): the promises of the library, each with the tests that prove it.
//! - [Jobs](jobs): follow-ups, unique tasks, the status and the results of tasks, how to cancel
//!   tasks, shared limits, pauses, and schedules.
//! - [Databases](databases): an outbox table and an inbox table, so that a change in the database
//!   and a task happen both or not at all.
//! - [Layers](layers): tower's middleware around routers and clients, and the meaning of its
//!   errors.
//! - [Operations](operations): the workers, what holds up a stream, back-pressure, and scaling.
//! - [Troubleshooting](troubleshooting): symptoms, causes and remedies.
#![cfg_attr(
    feature = "redis",
    doc = "- [Security](security): who may do what, and what a stranger's message can and cannot do.
- [Migrating from Go](migrating_from_go): how to move a service from Go-Broker.
- [Migrating from a list](migrating_from_lists): how to move from a queue in a Redis list.
- [In Persian](fa): the quick start, and moving from Go-Broker.
- [Topologies](topologies): one server, Sentinels, or a Redis Cluster.
- [Durability](durability): how the settings of a Redis server affect the guarantees.
- [From a terminal](terminal): the program `campanile`, for operators."
)]
#![cfg_attr(
    all(feature = "redis", feature = "conformance"),
    doc = "- [Custom transports](own_transport): how to write and test a transport."
)]
#![cfg_attr(
    all(feature = "schema", feature = "msgpack"),
    doc = "- [Contracts](contracts): names with the types of their payloads, AsyncAPI documents, versions, and other
  formats than JSON."
)]
#![cfg_attr(
    feature = "testing",
    doc = "- [Testing](testing): how to test an application, with an example."
)]
#![cfg_attr(
    feature = "http",
    doc = "- [HTTP](http): messages and axum, hyper and tower-http, in both directions."
)]
#![cfg_attr(
    feature = "dashboard",
    doc = "- [Dashboard](dashboard): pages for operators, behind your own login."
)]

// Most pages define their links twice: in this file for rustdoc, and at the end of the Markdown
// file for viewers of that file. rustdoc uses the first definition, which is the one in this file.

pub mod tour {
    //! The parts of Campanile, and where to read about each.
    //!
    //! [jobs]: crate::guide::jobs
    //! [operations]: crate::guide::operations
    //!
    #![doc = include_str!("../docs/tour.md")]
}

pub mod recipes {
    //! A small program for each common job.
    #![doc = include_str!("../docs/recipes.md")]
}

pub mod image_service {
    //! A whole service, and the code that each of its features needs.
    #![doc = include_str!("../docs/image-service.md")]
}

pub mod choosing {
    //! When Campanile fits, and when something else does.
    #![doc = include_str!("../docs/choosing.md")]
}

#[cfg(feature = "redis")]
pub mod security {
    //! Users of Redis and their rights, and what messages of a stranger can do.
    #![doc = include_str!("../docs/security.md")]
}

#[cfg(feature = "redis")]
pub mod fa {
    //! Pages in Persian.

    pub mod quickstart {
        //! A worker and a client.
        #![doc = include_str!("../docs/fa/quickstart.md")]
    }

    pub mod migrating_from_go {
        //! Moving a service from Go-Broker to Campanile.
        #![doc = include_str!("../docs/fa/migrating-from-go.md")]
    }
}

#[cfg(feature = "redis")]
pub mod migrating_from_lists {
    //! Moving from a queue in a Redis list.
    #![doc = include_str!("../docs/migrating-from-lists.md")]
}

#[cfg(feature = "redis")]
pub mod migrating_from_go {
    //! Moving a service from Go-Broker to Campanile.
    //!
    //! [`Router::task`]: crate::Router::task
    //! [`Router::event`]: crate::Router::event
    //! [`Router::rpc`]: crate::Router::rpc
    //! [`Client::nest`]: crate::Client::nest
    //! [`Client::enqueue`]: crate::Client::enqueue
    //! [`Client::publish`]: crate::Client::publish
    //! [`Client::request`]: crate::Client::request
    //! [`Client::request_fast`]: crate::Client::request_fast
    //! [`Redis::allowed_reply_prefixes`]: crate::Redis::allowed_reply_prefixes
    //! [`foreign_lease`]: crate::Redis::foreign_lease
    //! [`trim_beside_foreign_groups`]: crate::Redis::trim_beside_foreign_groups
    //!
    #![doc = include_str!("../docs/migrating-from-go.md")]
}

pub mod operations {
    //! The workers of an application, what holds up a stream, back-pressure, and scaling.
    //!
    //! [jobs]: crate::guide::jobs
    //! [`max_waiting`]: crate::transport::memory::Memory::max_waiting
    //! [`retry_after`]: crate::Error::retry_after
    //! [outbox]: crate::Outbox
    //! [Workers]: crate::transport::Workers
    #![cfg_attr(feature = "redis", doc = "[rights]: crate::transport::redis#rights")]
    //! [stats]: crate::transport::StreamStats
    #![cfg_attr(feature = "http", doc = "[`Backlogs`]: crate::http_bridge::Backlogs")]
    //!
    #![doc = include_str!("../docs/operations.md")]
}

pub mod troubleshooting {
    //! Symptoms, causes and remedies.
    //!
    #![cfg_attr(feature = "redis", doc = "[topologies]: crate::guide::topologies")]
    //!
    #![doc = include_str!("../docs/troubleshooting.md")]
}

pub mod guarantees {
    //! The promises of this library, and the tests that prove them.
    //!
    #![cfg_attr(feature = "redis", doc = "[durability]: crate::guide::durability")]
    #![cfg_attr(feature = "redis", doc = "[topologies]: crate::guide::topologies")]
    //! [`serve`]: crate::serve()
    //! [`Failure`]: crate::Failure
    //! [`Lease`]: crate::Lease
    //! [`RpcError`]: crate::RpcError
    //! [`Memory`]: crate::transport::memory::Memory
    //! [`max_deliveries`]: crate::transport::Settings::max_deliveries
    //! [`max_in_flight`]: crate::transport::Settings::max_in_flight
    //! [`max_in_flight_bytes`]: crate::transport::Settings::max_in_flight_bytes
    //!
    #![doc = include_str!("../docs/guarantees.md")]
}

#[cfg(all(feature = "schema", feature = "msgpack"))]
pub mod contracts {
    //! Names with types, descriptions, versions and formats of payloads.
    //!
    //! [`Carries`]: crate::extract::Carries
    //! [`Router::describe`]: crate::Router::describe
    //! [`with_schema`]: crate::contract::Task::with_schema
    //! [`to_json`]: crate::contract::Description::to_json
    //! [`from_json`]: crate::contract::Description::from_json
    //! [`breakages`]: crate::contract::breakages
    //! [`backoff`]: crate::transport::Settings::backoff
    //! [`Json`]: crate::Json
    //! [`MsgPack`]: crate::MsgPack
    //!
    #![doc = include_str!("../docs/contracts.md")]
}

pub mod jobs {
    //! Follow-ups, unique tasks, the status and the results of tasks, their attempts, shared limits,
    //! pauses, and schedules.
    //!
    //! [`max_deliveries`]: crate::transport::Settings::max_deliveries
    //! [`Parts::max_attempts`]: crate::Parts::max_attempts
    //! [`Failure`]: crate::Failure
    //! [`on_give_up`]: crate::serve::Serve::on_give_up
    //! [`enqueue_calls`]: crate::Client::enqueue_calls
    //! [`max_in_flight_of_group`]: crate::transport::memory::Memory::max_in_flight_of_group
    //! [`Limit`]: crate::transport::Limit
    //! [`Control::purge_waiting`]: crate::transport::Control::purge_waiting
    //! [statistics]: crate::transport::GroupStats::parked
    //! [`Outbox`]: crate::Outbox
    //! [`Lease`]: crate::Lease
    //! [`Lease::cancelled`]: crate::Lease::cancelled
    //! [`token`]: crate::Lease::token
    //! [`tracked`]: crate::client::Call::tracked
    //! [`idempotency_key`]: crate::client::Call::idempotency_key
    //! [`wait`]: crate::transport::Tasks::wait
    //! [`list`]: crate::transport::Tasks::list
    //! [`changes`]: crate::transport::Tasks::changes
    //! [`cancel_key`]: crate::transport::Tasks::cancel_key
    //! [`cancel_all`]: crate::transport::Tasks::cancel_all
    //! [`Gap`]: crate::transport::FeedItem::Gap
    //! [`Progress`]: crate::Progress
    //! [`Checkpoint`]: crate::Checkpoint
    #![cfg_attr(feature = "redis", doc = "[terminal]: crate::guide::terminal")]
    #![cfg_attr(feature = "redis", doc = "[`tasks`]: crate::Redis::tasks")]
    #![cfg_attr(feature = "redis", doc = "[`value_key`]: crate::Redis::value_key")]
    //!
    #![doc = include_str!("../docs/jobs.md")]
}

pub mod databases {
    //! Recipes for an outbox table and an inbox table.
    //!
    //! [`Outbox`]: crate::Outbox
    //! [`enqueue_calls`]: crate::Client::enqueue_calls
    //! [`idempotency_window`]: crate::transport::Settings::idempotency_window
    //! [idempotency key]: crate::client::Call::idempotency_key
    //!
    // The code of the page needs sqlx, so `examples/database` tests it.
    #![cfg_attr(not(doctest), doc = include_str!("../docs/databases.md"))]
}

pub mod layers {
    //! tower's middleware around routers and clients, and the meaning of its errors.
    //!
    //! [`Client`]: crate::Client
    //! [`Router`]: crate::Router
    //! [`serve`]: crate::serve()
    //! [`Failure`]: crate::Failure
    //! [`RpcError`]: crate::RpcError
    //! [`error::find`]: crate::error::find
    //! [is a time-out]: crate::Error::is_timeout
    //!
    #![doc = include_str!("../docs/layers.md")]
}

#[cfg(feature = "redis")]
pub mod topologies {
    //! One server, Sentinels, or a Redis Cluster.
    //!
    //! [durability]: crate::guide::durability
    //! [rights]: crate::transport::redis#rights
    //! [namespaces]: crate::transport::redis#namespaces
    //!
    #![doc = include_str!("../docs/topologies.md")]
}

#[cfg(feature = "redis")]
pub mod durability {
    //! The effect of a Redis server's settings on the guarantees.
    //!
    //! [guarantees]: crate::guide::guarantees
    //! [databases]: crate::guide::databases
    //! [`Redis::state`]: crate::Redis::state
    //! [`Redis::stats`]: crate::Redis::stats
    //! [`Redis::counts`]: crate::Redis::counts
    //! [`is_refused`]: crate::Error::is_refused
    //! [`is_disconnected`]: crate::Error::is_disconnected
    //! [`is_unknown_outcome`]: crate::Error::is_unknown_outcome
    //! [`is_unreplicated`]: crate::Error::is_unreplicated
    //! [`stored_id`]: crate::Error::stored_id
    //! [`replicas`]: crate::client::Call::replicas
    //! [rights]: crate::transport::redis#rights
    //! [`is_timeout`]: crate::Error::is_timeout
    //! [`is_invalid`]: crate::Error::is_invalid
    //! [`is_config`]: crate::Error::is_config
    //! [`idempotency_window`]: crate::transport::Settings::idempotency_window
    //!
    #![doc = include_str!("../docs/durability.md")]
}

#[cfg(feature = "redis")]
pub mod terminal {
    //! The program `campanile`, for operators.
    //!
    //! [`Redis::tail`]: crate::Redis::tail
    //! [rights]: crate::transport::redis#rights
    //!
    #![doc = include_str!("../docs/terminal.md")]
}

#[cfg(all(feature = "redis", feature = "conformance"))]
pub mod own_transport {
    //! Writing and testing a transport.
    //!
    //! [`examples/transport/queue.rs`]: #the-complete-code
    //! [`Redis`]: crate::Redis
    //! [`Memory`]: crate::transport::memory::Memory
    //! [`Reply`]: crate::Reply
    //! [`Reply::accepted`]: crate::Reply::accepted
    //! [`Error`]: crate::Error
    //! [`Error::invalid`]: crate::Error::invalid
    //! [`Error::refused`]: crate::Error::refused
    //! [`Error::disconnected`]: crate::Error::disconnected
    //! [`Error::unknown_outcome`]: crate::Error::unknown_outcome
    //! [`Error::timeout`]: crate::Error::timeout
    //! [`Error::config`]: crate::Error::config
    //! [`RpcError`]: crate::RpcError
    //! [`Lease`]: crate::Lease
    //! [`check`]: crate::transport::check
    //! [`codec::encode`]: crate::transport::codec::encode
    //! [`codec::decode`]: crate::transport::codec::decode
    //! [`Transport`]: crate::transport::Transport
    //! [`Interest`]: crate::transport::Interest
    //! [`Source`]: crate::transport::Source
    //! [`Source::next`]: crate::transport::Source::next
    //! [`Source::stop`]: crate::transport::Source::stop
    //! [`Source::close`]: crate::transport::Source::close
    //! [`Delivery`]: crate::transport::Delivery
    //! [`Undecodable`]: crate::transport::Undecodable
    //! [`SettleDelivery::settle`]: crate::transport::SettleDelivery::settle
    //! [`Verdict`]: crate::transport::Verdict
    //! [`Verdict::limited`]: crate::transport::Verdict::limited
    //! [`Parts::max_attempts`]: crate::Parts::max_attempts
    //! [`Limit`]: crate::transport::Limit
    //! [`Settings`]: crate::transport::Settings
    //! [`Factory`]: crate::conformance::Factory
    //! [`Capabilities`]: crate::conformance::Capabilities
    //!
    #![doc = include_str!("../docs/own-transport.md")]
    //!
    //! # The complete code
    //!
    //! ```
    #![doc = include_str!("../examples/transport/queue.rs")]
    //! ```
}

#[cfg(feature = "testing")]
pub mod testing {
    //! Testing an application.
    //!
    //! [`examples/testing/app.rs`]: #the-whole-application
    //! [`Memory`]: crate::transport::memory::Memory
    //! [`Harness`]: crate::testing::Harness
    //! [`Recorder`]: crate::testing::Recorder
    //! [`settled`]: crate::testing::Harness::settled
    //! [`advance_to_next`]: crate::testing::Harness::advance_to_next
    //! [`advance`]: crate::testing::Harness::advance
    //! [`finished`]: crate::testing::Harness::finished
    //! [`patience`]: crate::testing::Harness::patience
    //! [`max_deliveries`]: crate::testing::Harness::max_deliveries
    //! [`run`]: crate::testing::Harness::run
    //! [`shutdown`]: crate::testing::Harness::shutdown
    //! [`serve`]: crate::serve()
    //! [expected]: crate::testing::Expected
    //! [records]: crate::testing::Record
    #![cfg_attr(feature = "redis", doc = "[durability]: crate::guide::durability")]
    //!
    #![doc = include_str!("../docs/testing.md")]
    //!
    //! # The whole application
    //!
    //! ```
    #![doc = include_str!("../examples/testing/app.rs")]
    //! # fn main() {}
    //! ```
}

#[cfg(feature = "http")]
pub mod http {
    //! Messages and HTTP, in both directions.
    //!
    //! [`HttpHandler`]: crate::http_bridge::HttpHandler
    //! [`HttpHandler::target`]: crate::http_bridge::HttpHandler::target
    //! [`HttpHandler::content_type`]: crate::http_bridge::HttpHandler::content_type
    //! [`HttpHandler::cloud_events`]: crate::http_bridge::HttpHandler::cloud_events
    //! [`HttpHandler::on_status`]: crate::http_bridge::HttpHandler::on_status
    //! [`max_response_bytes`]: crate::http_bridge::HttpHandler::max_response_bytes
    //! [`Origin`]: crate::http_bridge::Origin
    //! [`Gateway`]: crate::http_bridge::Gateway
    //! [`Gateway::on_code`]: crate::http_bridge::Gateway::on_code
    //! [`Gateway::prepare`]: crate::http_bridge::Gateway::prepare
    //! [`Gateway::forward_header`]: crate::http_bridge::Gateway::forward_header
    //! [`max_body_bytes`]: crate::http_bridge::Gateway::max_body_bytes
    //! [`timeout`]: crate::http_bridge::Gateway::timeout
    //! [types]: crate::http_bridge::Gateway::content_types
    //! [`idempotency_window`]: crate::transport::Settings::idempotency_window
    //! [back-pressure]: crate::guide::operations
    //! [`accept_form_type`]: crate::http_bridge::Gateway::accept_form_type
    //! [`trust_header`]: crate::http_bridge::HttpHandler::trust_header
    //! [`HttpLayer`]: crate::http_bridge::HttpLayer
    //! [`Health`]: crate::http_bridge::Health
    //! [`Problem`]: crate::http_bridge::Problem
    //! [ready]: crate::transport::ConnectionState::is_ready
    //!
    // The code of the page needs axum and tower-http, so `examples/axum` tests it.
    #![cfg_attr(not(doctest), doc = include_str!("../docs/http.md"))]
}

#[cfg(feature = "dashboard")]
pub mod dashboard {
    //! Pages for operators.
    //!
    //! [`Dashboard`]: crate::dashboard::Dashboard
    //! [`at`]: crate::dashboard::Dashboard::at
    //! [`user`]: crate::dashboard::Dashboard::user
    //! [`read_only`]: crate::dashboard::Dashboard::read_only
    //! [`stream`]: crate::dashboard::Dashboard::stream
    //! [history]: crate::transport::memory::Memory::history
    #![cfg_attr(feature = "redis", doc = "[rights]: crate::transport::redis#rights")]
    //!
    #![doc = include_str!("../docs/dashboard.md")]
}
