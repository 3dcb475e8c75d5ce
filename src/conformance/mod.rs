//! The conformance suite: what every transport has to do, as tests for authors of transports.
//!
//! Write a [`Factory`] that connects to your server, and let
//! [`conformance_tests!`](crate::conformance_tests) make a test of each check. The checks drive a
//! [`Source`](crate::transport::Source) by hand; no router and no serving loop takes part. This is
//! how the embedded transport is tested:
//!
//! ```
//! mod memory {
//!     campanile::conformance_tests!(campanile::transport::memory::Memory::new());
//! }
//! ```
//!
//! With a test attribute and a server of your own; the expression is evaluated in each test and may await:
//!
//! ```
//! # mod my_transport {
//! use campanile::{
//!     Error,
//!     conformance::{Capabilities, Factory},
//!     transport::{Settings, memory::Memory},
//! };
//!
//! struct Server(Memory);
//!
//! impl Server {
//!     async fn start() -> Self {
//!         Server(Memory::new())
//!     }
//! }
//!
//! impl Factory for Server {
//!     type Handle = Memory;
//!
//!     async fn connect(&self, settings: Settings) -> Result<Memory, Error> {
//!         Ok(self.0.clone().with_settings(settings))
//!     }
//!
//!     fn capabilities(&self) -> Capabilities {
//!         let mut capabilities = Capabilities::all();
//!         capabilities.raw_entries = false;
//!         capabilities.dead_letters = false;
//!         capabilities.delayed_tasks = false;
//!         capabilities.statistics = false;
//!         capabilities.stream_sets = false;
//!         capabilities.end_leases = false;
//!         capabilities.restart = false;
//!         capabilities
//!     }
//! }
//!
//! campanile::conformance_tests!(
//!     #[tokio::test(start_paused = true)]
//!     Server::start().await
//! );
//! # }
//! ```
//!
//! Each check is a public function as well: `conformance::a_request_gets_its_reply(&factory).await`.
//!
//! # Panics
//! That is how a check fails: with a text that says what should have happened. Each takes bounded
//! time, and most take well under a second; those that wait for a lease take a few.

mod crowds;
mod dead;
mod events;
mod factory;
mod groups;
mod messages;
mod redelivery;
mod rpc;
mod scene;
mod sending;
mod stats;
mod streams;
mod undecodable;
mod workers;

pub use self::{
    crowds::{
        a_backlog_is_worked_off_in_batches_by_workers_that_come_and_go,
        a_restart_of_the_server_loses_nothing_that_was_accepted,
        fifty_senders_and_fifty_workers_lose_and_repeat_nothing,
        workers_that_open_and_close_at_the_same_time_lose_and_repeat_nothing,
    },
    dead::{
        a_replay_reaches_only_the_group_of_the_dead_letter,
        a_replayed_dead_letter_starts_from_its_first_attempt,
        dead_letters_are_listed_in_pages_and_found_by_id, many_dead_letters_are_replayed_once_each,
        what_is_selected_is_replayed_or_purged_and_nothing_else,
    },
    events::{
        a_listener_takes_nothing_from_the_stream, a_pattern_gets_the_events_that_it_matches,
        a_worker_takes_tasks_and_events_together,
        an_event_comes_once_for_each_matching_subscription, an_event_is_not_kept_for_later,
        an_event_reaches_every_subscriber, headers_of_an_event_are_not_lost_in_silence,
    },
    factory::{Capabilities, Factory},
    groups::{
        a_group_goes_on_where_it_was, a_group_starts_where_it_is_told,
        a_new_group_beside_another_must_choose_its_start,
        beside_another_group_the_fate_of_unknown_names_must_be_chosen,
        every_group_gets_every_message, streams_are_isolated_from_each_other,
        what_one_group_does_is_invisible_to_others,
        what_was_sent_before_the_first_worker_is_delivered, workers_of_a_group_share_its_messages,
    },
    messages::{
        a_message_has_the_id_of_its_receipt, a_message_names_its_stream_and_group,
        a_name_that_cannot_be_used_is_refused, a_payload_of_16_mib_arrives_intact,
        headers_arrive_with_repeats_and_binary_values, names_of_any_text_arrive_intact,
        payloads_of_any_bytes_arrive_intact, tasks_and_requests_keep_their_kinds,
    },
    redelivery::{
        a_dead_letter_keeps_its_fields_and_the_reason,
        a_delayed_redelivery_waits_and_outlives_its_worker,
        a_failed_delivery_comes_back_after_the_back_off,
        a_failed_delivery_comes_back_as_the_next_attempt,
        a_message_whose_deliveries_are_used_up_becomes_a_dead_letter,
        an_uncounted_redelivery_is_no_attempt, what_is_discarded_is_gone,
        what_is_given_back_goes_to_another_worker_at_once,
    },
    rpc::{
        a_dropped_request_disturbs_no_other, a_redelivered_request_is_answered_in_the_end,
        a_request_ends_at_its_deadline, a_request_gets_its_error, a_request_gets_its_reply,
        a_request_that_fails_for_good_is_answered,
        a_request_that_nobody_serves_ends_at_its_deadline,
        requests_under_way_together_get_each_their_own_reply,
    },
    sending::{
        a_cancelled_task_frees_its_idempotency_key,
        a_delayed_task_can_be_cancelled_until_it_is_due, a_delayed_task_comes_when_it_is_due,
        a_delayed_task_keeps_its_id_through_redelivery,
        a_task_for_a_time_comes_then_or_at_once_when_it_is_past,
        a_time_to_live_counts_from_when_the_task_is_due,
        an_idempotency_key_is_one_task_within_its_window,
        senders_of_one_key_at_the_same_time_send_one_task, what_a_sender_cannot_mean_is_refused,
    },
    stats::statistics_follow_what_happens_to_messages,
    streams::{
        a_call_can_choose_its_stream, a_redelivery_in_a_set_stays_on_its_stream,
        a_set_that_cannot_be_served_is_refused, a_stream_with_priority_is_emptied_first,
        registered_streams_are_found_while_they_are_served, streams_share_by_their_weights,
    },
    undecodable::{
        a_message_in_any_field_order_with_unknown_fields_is_read,
        a_request_that_cannot_be_answered_is_settled, an_entry_that_is_no_message_blocks_nothing,
    },
    workers::{
        a_delivery_that_is_dropped_comes_back_after_the_lease, a_living_worker_keeps_what_it_holds,
        a_lost_lease_is_told_and_its_late_verdict_changes_nothing,
        a_message_that_kills_its_workers_becomes_a_dead_letter,
        a_worker_holds_back_nothing_that_it_did_not_ask_for,
        a_worker_that_stops_leaves_the_rest_to_others_at_once, a_worker_that_waits_can_be_closed,
        next_can_be_dropped_without_loss, one_in_flight_keeps_the_order,
        what_a_vanished_worker_held_is_taken_over,
    },
};

/// Makes a test of each check of the [conformance suite](crate::conformance).
///
/// It takes an expression that makes a [`Factory`](crate::conformance::Factory), with a test
/// attribute before it if need be. Without one, each test runs on a `tokio` runtime of two threads;
/// your crate needs `tokio` with the features `macros` and `rt-multi-thread` for that.
#[macro_export]
macro_rules! conformance_tests {
    // Before the other: an expression may have an attribute, too.
    (#[$attribute:meta] $factory:expr $(,)?) => {
        $crate::__conformance_cases! {
            [#[$attribute]] [$factory]
            payloads_of_any_bytes_arrive_intact
            a_payload_of_16_mib_arrives_intact
            headers_arrive_with_repeats_and_binary_values
            a_message_has_the_id_of_its_receipt
            a_message_names_its_stream_and_group
            tasks_and_requests_keep_their_kinds
            names_of_any_text_arrive_intact
            a_name_that_cannot_be_used_is_refused
            what_was_sent_before_the_first_worker_is_delivered
            every_group_gets_every_message
            workers_of_a_group_share_its_messages
            a_new_group_beside_another_must_choose_its_start
            a_group_starts_where_it_is_told
            what_one_group_does_is_invisible_to_others
            a_group_goes_on_where_it_was
            beside_another_group_the_fate_of_unknown_names_must_be_chosen
            streams_are_isolated_from_each_other
            a_failed_delivery_comes_back_as_the_next_attempt
            a_failed_delivery_comes_back_after_the_back_off
            a_delayed_redelivery_waits_and_outlives_its_worker
            an_uncounted_redelivery_is_no_attempt
            what_is_given_back_goes_to_another_worker_at_once
            a_message_whose_deliveries_are_used_up_becomes_a_dead_letter
            a_dead_letter_keeps_its_fields_and_the_reason
            what_is_discarded_is_gone
            dead_letters_are_listed_in_pages_and_found_by_id
            a_replayed_dead_letter_starts_from_its_first_attempt
            what_is_selected_is_replayed_or_purged_and_nothing_else
            many_dead_letters_are_replayed_once_each
            a_replay_reaches_only_the_group_of_the_dead_letter
            a_cancelled_task_frees_its_idempotency_key
            a_delayed_task_can_be_cancelled_until_it_is_due
            a_delayed_task_comes_when_it_is_due
            a_delayed_task_keeps_its_id_through_redelivery
            a_task_for_a_time_comes_then_or_at_once_when_it_is_past
            a_time_to_live_counts_from_when_the_task_is_due
            an_idempotency_key_is_one_task_within_its_window
            senders_of_one_key_at_the_same_time_send_one_task
            what_a_sender_cannot_mean_is_refused
            statistics_follow_what_happens_to_messages
            a_call_can_choose_its_stream
            a_stream_with_priority_is_emptied_first
            streams_share_by_their_weights
            a_redelivery_in_a_set_stays_on_its_stream
            a_set_that_cannot_be_served_is_refused
            registered_streams_are_found_while_they_are_served
            an_entry_that_is_no_message_blocks_nothing
            a_message_in_any_field_order_with_unknown_fields_is_read
            a_request_that_cannot_be_answered_is_settled
            an_event_reaches_every_subscriber
            an_event_is_not_kept_for_later
            a_pattern_gets_the_events_that_it_matches
            an_event_comes_once_for_each_matching_subscription
            headers_of_an_event_are_not_lost_in_silence
            a_listener_takes_nothing_from_the_stream
            a_worker_takes_tasks_and_events_together
            a_request_gets_its_reply
            a_request_gets_its_error
            requests_under_way_together_get_each_their_own_reply
            a_redelivered_request_is_answered_in_the_end
            a_request_that_fails_for_good_is_answered
            a_request_ends_at_its_deadline
            a_request_that_nobody_serves_ends_at_its_deadline
            a_dropped_request_disturbs_no_other
            one_in_flight_keeps_the_order
            a_worker_holds_back_nothing_that_it_did_not_ask_for
            next_can_be_dropped_without_loss
            a_worker_that_stops_leaves_the_rest_to_others_at_once
            a_worker_that_waits_can_be_closed
            what_a_vanished_worker_held_is_taken_over
            a_delivery_that_is_dropped_comes_back_after_the_lease
            a_message_that_kills_its_workers_becomes_a_dead_letter
            a_living_worker_keeps_what_it_holds
            a_lost_lease_is_told_and_its_late_verdict_changes_nothing
            fifty_senders_and_fifty_workers_lose_and_repeat_nothing
            a_backlog_is_worked_off_in_batches_by_workers_that_come_and_go
            workers_that_open_and_close_at_the_same_time_lose_and_repeat_nothing
            a_restart_of_the_server_loses_nothing_that_was_accepted
        }
    };
    ($factory:expr $(,)?) => {
        $crate::conformance_tests!(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            $factory
        );
    };
}

/// One test for each name.
#[doc(hidden)]
#[macro_export]
macro_rules! __conformance_cases {
    ($attributes:tt $factory:tt $($case:ident)+) => {
        $($crate::__conformance_case!($attributes $factory $case);)+
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __conformance_case {
    ([$($attribute:tt)+] [$factory:expr] $case:ident) => {
        $($attribute)+
        async fn $case() {
            let factory = $factory;
            $crate::conformance::$case(&factory).await;
        }
    };
}
