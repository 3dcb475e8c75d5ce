//! The conformance suite: checks that every transport has to pass, for authors of transports.
//!
//! Write a [`Factory`] that connects to your server, and call
//! [`conformance_tests!`](crate::conformance_tests) to define a test for each check. The checks
//! drive a [`Source`](crate::transport::Source) directly, without a router or a serving loop. The
//! transport in memory is tested like this:
//!
//! ```
//! mod memory {
//!     campanile::conformance_tests!(campanile::transport::memory::Memory::new());
//! }
//! ```
//!
//! The next example adds a test attribute, and uses a custom server. The expression after the
//! attribute is evaluated in each test, and may await:
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
//!         capabilities.backlog = false;
//!         capabilities.stream_sets = false;
//!         capabilities.partitions = false;
//!         capabilities.outbox = false;
//!         capabilities.tasks = false;
//!         capabilities.schedules = false;
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
//! Each check is also a public function: `conformance::a_request_gets_its_reply(&factory).await`.
//!
//! # Panics
//! A check that fails panics with the reason. Each check takes a bounded time: most take less than
//! a second, and checks that wait for a lease take a few seconds.

mod announced;
mod bounds;
mod control;
mod crowds;
mod dead;
mod events;
mod factory;
mod giving_up;
mod groups;
mod limits;
mod listing;
mod messages;
mod outbox;
mod owned;
mod partitions;
mod records;
mod redelivery;
mod rpc;
mod scene;
mod schedules;
mod sending;
mod stats;
mod streams;
mod tasks;
mod undecodable;
mod versions;
mod workers;

pub use self::{
    announced::{
        a_worker_follows_the_orders_to_it, the_history_of_a_group_has_what_its_workers_did,
        workers_answer_what_they_have_done_and_what_runs,
        workers_are_listed_from_their_start_to_their_end,
    },
    bounds::{
        a_full_stream_refuses_senders_until_workers_take_messages,
        a_full_stream_takes_follow_ups_redeliveries_and_delayed_tasks,
        a_group_without_workers_does_not_stop_senders,
        a_message_that_waits_for_too_long_stops_senders,
        a_sender_waits_for_room_until_its_time_is_over, an_invalid_bound_is_refused,
        each_partition_has_its_own_bound,
    },
    control::{
        a_cancelled_task_stays_cancelled_over_a_pause_and_a_purge,
        a_paused_stream_delivers_nothing_until_it_is_resumed, a_purge_removes_what_waits,
        a_worker_that_starts_during_a_pause_follows_it,
        messages_with_a_paused_name_wait_in_their_order,
    },
    crowds::{
        a_backlog_is_worked_off_in_batches_by_workers_that_come_and_go,
        a_restart_of_the_server_loses_nothing_that_was_accepted,
        fifty_senders_and_fifty_workers_lose_and_repeat_nothing,
        workers_that_open_and_close_at_the_same_time_lose_and_repeat_nothing,
    },
    dead::{
        a_dead_letter_is_replayed_as_edited, a_replay_reaches_only_the_group_of_the_dead_letter,
        a_replayed_dead_letter_starts_from_its_first_attempt,
        dead_letters_are_listed_in_pages_and_found_by_id, many_dead_letters_are_replayed_once_each,
        only_selected_dead_letters_are_replayed_or_purged,
    },
    events::{
        a_listener_leaves_the_stream_to_others, a_pattern_gets_the_events_that_it_matches,
        a_worker_receives_tasks_and_events_together,
        an_event_is_delivered_once_for_each_matching_subscription, an_event_is_not_kept_for_later,
        an_event_reaches_every_subscriber, headers_of_an_event_arrive_or_are_refused,
        sharded_events_have_their_own_audience,
    },
    factory::{Capabilities, Factory},
    giving_up::{
        a_key_is_free_once_its_task_was_given_up,
        a_task_is_given_up_after_its_own_number_of_attempts,
        a_task_that_is_given_up_frees_no_key_of_another,
        a_task_that_kills_its_workers_frees_its_idempotency_key,
    },
    groups::{
        a_group_continues_at_its_position, a_group_starts_at_its_start,
        a_new_group_beside_another_must_choose_its_start,
        beside_another_group_unknown_names_must_be_set, every_group_gets_every_message,
        messages_sent_before_the_first_worker_are_delivered, streams_are_isolated_from_each_other,
        the_work_of_one_group_is_invisible_to_others, workers_of_a_group_share_its_messages,
    },
    limits::{
        a_message_that_is_parked_again_returns_its_permit, a_parked_task_can_be_cancelled,
        a_permit_that_is_handed_over_returns_if_its_message_is_removed,
        a_permit_that_is_not_taken_is_passed_on,
        a_permit_that_is_taken_again_is_returned_after_its_last_use,
        a_rate_limit_gives_each_message_a_start_time,
        a_rate_limit_keeps_the_start_times_of_waiting_messages,
        parked_messages_get_the_permits_that_are_returned,
        the_workers_of_a_group_keep_to_their_limit,
    },
    listing::{messages_are_listed_by_their_state, parked_messages_are_listed_by_their_key},
    messages::{
        a_message_has_the_id_of_its_receipt, a_message_names_its_stream_and_group,
        a_name_that_cannot_be_used_is_refused, a_payload_of_16_mib_arrives_intact,
        headers_arrive_with_repeats_and_binary_values, names_of_any_text_arrive_intact,
        payloads_of_any_bytes_arrive_intact, tasks_and_requests_keep_their_kinds,
    },
    outbox::{
        a_follow_up_goes_to_the_partition_of_its_key, a_follow_up_with_a_key_is_sent_once,
        a_request_sends_its_follow_ups_if_it_succeeds, an_invalid_follow_up_is_refused,
        follow_ups_are_sent_with_the_acknowledgement, follow_ups_of_a_failed_attempt_are_not_sent,
        follow_ups_of_a_lost_delivery_are_not_sent,
    },
    owned::{
        a_failed_message_holds_up_its_key_and_no_other, a_verdict_of_a_former_owner_has_no_effect,
        a_worker_that_is_alone_owns_all_partitions, a_worker_that_stops_hands_its_partitions_over,
        a_worker_that_would_read_owned_partitions_is_refused,
        each_partition_has_one_owner_at_a_time,
        keys_keep_their_order_over_workers_that_come_and_go,
        the_partitions_of_a_dead_worker_are_owned_after_its_lease,
    },
    partitions::{
        a_key_has_one_partition, a_partitioned_stream_is_used_as_one_stream,
        numbers_of_partitions_that_differ_are_refused,
    },
    records::{
        a_checkpoint_is_read_by_the_next_attempt, a_list_of_tasks_has_pages_by_state_and_name,
        a_task_is_cancelled_by_its_key, a_wait_ends_with_its_task,
        a_worker_that_lost_its_task_notes_nothing, changes_are_followed_from_a_cursor,
        input_about_tasks_that_is_invalid_is_refused, tasks_are_cancelled_by_state_and_name,
        the_progress_of_a_task_is_recorded, the_result_of_a_task_is_recorded_up_to_a_size,
        the_tasks_of_all_partitions_are_seen_together,
    },
    redelivery::{
        a_dead_letter_keeps_its_fields_and_the_reason,
        a_delayed_redelivery_waits_and_outlives_its_worker,
        a_discarded_message_is_not_delivered_again,
        a_failed_message_is_delivered_again_after_the_back_off,
        a_failed_message_is_delivered_again_as_the_next_attempt,
        a_message_whose_deliveries_are_used_up_becomes_a_dead_letter,
        a_released_delivery_goes_to_another_worker_at_once, an_uncounted_redelivery_is_no_attempt,
    },
    rpc::{
        a_dropped_request_disturbs_no_other, a_redelivered_request_is_answered_in_the_end,
        a_request_ends_at_its_deadline, a_request_gets_its_error, a_request_gets_its_reply,
        a_request_that_is_given_up_is_answered, a_request_without_a_worker_ends_at_its_deadline,
        concurrent_requests_get_their_own_replies,
    },
    schedules::{
        a_schedule_is_paused_resumed_and_run_by_hand,
        a_tick_is_skipped_while_the_last_task_has_not_ended, an_invalid_schedule_is_refused,
        missed_ticks_are_sent_together_or_each_as_chosen, schedules_are_changed_at_run_time,
        the_jitter_of_a_schedule_delays_its_tasks, ticks_are_sent_once_by_any_number_of_processes,
    },
    sending::{
        a_cancelled_task_frees_its_idempotency_key,
        a_delayed_task_can_be_cancelled_until_it_is_due,
        a_delayed_task_is_delivered_when_it_is_due, a_delayed_task_keeps_its_id_through_redelivery,
        a_task_for_a_time_is_delivered_then_or_at_once_if_it_is_past,
        a_time_to_live_counts_from_when_the_task_is_due,
        an_idempotency_key_is_one_task_within_its_window, an_invalid_message_is_refused,
        senders_of_one_key_at_the_same_time_send_one_task,
    },
    stats::{
        a_backlog_counts_each_message_by_what_it_waits_for,
        statistics_follow_what_happens_to_messages,
    },
    streams::{
        a_call_can_choose_its_stream, a_redelivery_in_a_set_stays_on_its_stream,
        a_set_that_cannot_be_served_is_refused, a_stream_with_priority_is_emptied_first,
        registered_streams_are_found_while_they_are_served, streams_share_by_their_weights,
    },
    tasks::{
        a_follow_up_can_be_unique, a_running_task_learns_that_it_is_cancelled,
        a_task_that_is_not_running_is_cancelled_and_does_not_run,
        a_task_that_kills_its_workers_frees_its_key, a_unique_key_is_held_until_its_task_has_ended,
        a_unique_task_replaces_one_that_is_not_due,
        senders_of_one_unique_key_at_the_same_time_send_one_task,
        the_status_of_a_dead_task_follows_its_replay, the_status_of_a_task_follows_it,
    },
    undecodable::{
        a_message_in_any_field_order_with_unknown_fields_is_read,
        a_request_that_cannot_be_answered_is_settled, an_undecodable_entry_does_not_hold_up_others,
    },
    versions::{
        a_task_of_a_newer_version_passes_older_workers,
        a_task_of_a_newer_version_waits_for_a_newer_worker,
    },
    workers::{
        a_dropped_delivery_is_delivered_again_after_its_lease, a_live_worker_keeps_its_deliveries,
        a_lost_lease_is_reported_and_a_late_verdict_changes_nothing,
        a_message_that_kills_its_workers_becomes_a_dead_letter,
        a_worker_fetches_only_what_it_asked_for,
        a_worker_that_stops_leaves_the_rest_to_others_at_once, a_worker_that_waits_can_be_closed,
        next_can_be_dropped_without_loss, one_in_flight_keeps_the_order,
        the_deliveries_of_a_crashed_worker_are_claimed,
    },
};

/// Defines a test for each check of the [conformance suite](crate::conformance).
///
/// The macro takes an expression that makes a [`Factory`](crate::conformance::Factory), and an
/// optional test attribute before it. Without an attribute, each test runs on a `tokio` runtime of
/// two threads. Such tests need `tokio` with the features `macros` and `rt-multi-thread`.
///
/// ```
/// mod memory {
///     campanile::conformance_tests!(campanile::transport::memory::Memory::new());
/// }
/// ```
#[macro_export]
macro_rules! conformance_tests {
    // This arm must come first, because an expression may also begin with an attribute.
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
            messages_sent_before_the_first_worker_are_delivered
            every_group_gets_every_message
            workers_of_a_group_share_its_messages
            a_new_group_beside_another_must_choose_its_start
            a_group_starts_at_its_start
            the_work_of_one_group_is_invisible_to_others
            a_group_continues_at_its_position
            beside_another_group_unknown_names_must_be_set
            streams_are_isolated_from_each_other
            a_failed_message_is_delivered_again_as_the_next_attempt
            a_failed_message_is_delivered_again_after_the_back_off
            a_delayed_redelivery_waits_and_outlives_its_worker
            an_uncounted_redelivery_is_no_attempt
            a_released_delivery_goes_to_another_worker_at_once
            a_message_whose_deliveries_are_used_up_becomes_a_dead_letter
            a_task_is_given_up_after_its_own_number_of_attempts
            a_key_is_free_once_its_task_was_given_up
            a_task_that_is_given_up_frees_no_key_of_another
            a_task_that_kills_its_workers_frees_its_idempotency_key
            a_dead_letter_keeps_its_fields_and_the_reason
            a_discarded_message_is_not_delivered_again
            dead_letters_are_listed_in_pages_and_found_by_id
            a_replayed_dead_letter_starts_from_its_first_attempt
            only_selected_dead_letters_are_replayed_or_purged
            many_dead_letters_are_replayed_once_each
            a_replay_reaches_only_the_group_of_the_dead_letter
            a_cancelled_task_frees_its_idempotency_key
            a_delayed_task_can_be_cancelled_until_it_is_due
            a_delayed_task_is_delivered_when_it_is_due
            a_delayed_task_keeps_its_id_through_redelivery
            a_task_for_a_time_is_delivered_then_or_at_once_if_it_is_past
            a_time_to_live_counts_from_when_the_task_is_due
            an_idempotency_key_is_one_task_within_its_window
            senders_of_one_key_at_the_same_time_send_one_task
            an_invalid_message_is_refused
            statistics_follow_what_happens_to_messages
            a_backlog_counts_each_message_by_what_it_waits_for
            a_full_stream_refuses_senders_until_workers_take_messages
            a_full_stream_takes_follow_ups_redeliveries_and_delayed_tasks
            a_sender_waits_for_room_until_its_time_is_over
            a_group_without_workers_does_not_stop_senders
            a_message_that_waits_for_too_long_stops_senders
            each_partition_has_its_own_bound
            an_invalid_bound_is_refused
            a_call_can_choose_its_stream
            a_stream_with_priority_is_emptied_first
            streams_share_by_their_weights
            a_redelivery_in_a_set_stays_on_its_stream
            a_set_that_cannot_be_served_is_refused
            registered_streams_are_found_while_they_are_served
            follow_ups_are_sent_with_the_acknowledgement
            follow_ups_of_a_failed_attempt_are_not_sent
            follow_ups_of_a_lost_delivery_are_not_sent
            a_request_sends_its_follow_ups_if_it_succeeds
            a_follow_up_with_a_key_is_sent_once
            a_follow_up_goes_to_the_partition_of_its_key
            an_invalid_follow_up_is_refused
            a_key_has_one_partition
            a_partitioned_stream_is_used_as_one_stream
            numbers_of_partitions_that_differ_are_refused
            a_worker_that_is_alone_owns_all_partitions
            each_partition_has_one_owner_at_a_time
            a_failed_message_holds_up_its_key_and_no_other
            a_worker_that_stops_hands_its_partitions_over
            the_partitions_of_a_dead_worker_are_owned_after_its_lease
            a_verdict_of_a_former_owner_has_no_effect
            a_worker_that_would_read_owned_partitions_is_refused
            keys_keep_their_order_over_workers_that_come_and_go
            the_status_of_a_task_follows_it
            the_status_of_a_dead_task_follows_its_replay
            a_unique_key_is_held_until_its_task_has_ended
            a_unique_task_replaces_one_that_is_not_due
            senders_of_one_unique_key_at_the_same_time_send_one_task
            a_task_that_is_not_running_is_cancelled_and_does_not_run
            a_running_task_learns_that_it_is_cancelled
            a_task_that_kills_its_workers_frees_its_key
            a_follow_up_can_be_unique
            parked_messages_get_the_permits_that_are_returned
            a_permit_that_is_not_taken_is_passed_on
            a_parked_task_can_be_cancelled
            a_rate_limit_gives_each_message_a_start_time
            the_workers_of_a_group_keep_to_their_limit
            a_rate_limit_keeps_the_start_times_of_waiting_messages
            a_permit_that_is_taken_again_is_returned_after_its_last_use
            a_permit_that_is_handed_over_returns_if_its_message_is_removed
            a_message_that_is_parked_again_returns_its_permit
            messages_are_listed_by_their_state
            parked_messages_are_listed_by_their_key
            a_dead_letter_is_replayed_as_edited
            a_paused_stream_delivers_nothing_until_it_is_resumed
            messages_with_a_paused_name_wait_in_their_order
            a_purge_removes_what_waits
            a_worker_that_starts_during_a_pause_follows_it
            a_cancelled_task_stays_cancelled_over_a_pause_and_a_purge
            workers_are_listed_from_their_start_to_their_end
            workers_answer_what_they_have_done_and_what_runs
            a_worker_follows_the_orders_to_it
            the_history_of_a_group_has_what_its_workers_did
            ticks_are_sent_once_by_any_number_of_processes
            missed_ticks_are_sent_together_or_each_as_chosen
            schedules_are_changed_at_run_time
            a_schedule_is_paused_resumed_and_run_by_hand
            a_tick_is_skipped_while_the_last_task_has_not_ended
            the_jitter_of_a_schedule_delays_its_tasks
            an_invalid_schedule_is_refused
            the_result_of_a_task_is_recorded_up_to_a_size
            the_progress_of_a_task_is_recorded
            a_checkpoint_is_read_by_the_next_attempt
            a_worker_that_lost_its_task_notes_nothing
            a_list_of_tasks_has_pages_by_state_and_name
            changes_are_followed_from_a_cursor
            a_wait_ends_with_its_task
            a_task_is_cancelled_by_its_key
            tasks_are_cancelled_by_state_and_name
            the_tasks_of_all_partitions_are_seen_together
            input_about_tasks_that_is_invalid_is_refused
            an_undecodable_entry_does_not_hold_up_others
            a_message_in_any_field_order_with_unknown_fields_is_read
            a_request_that_cannot_be_answered_is_settled
            an_event_reaches_every_subscriber
            an_event_is_not_kept_for_later
            a_pattern_gets_the_events_that_it_matches
            an_event_is_delivered_once_for_each_matching_subscription
            sharded_events_have_their_own_audience
            headers_of_an_event_arrive_or_are_refused
            a_listener_leaves_the_stream_to_others
            a_worker_receives_tasks_and_events_together
            a_request_gets_its_reply
            a_request_gets_its_error
            concurrent_requests_get_their_own_replies
            a_redelivered_request_is_answered_in_the_end
            a_request_that_is_given_up_is_answered
            a_request_ends_at_its_deadline
            a_request_without_a_worker_ends_at_its_deadline
            a_dropped_request_disturbs_no_other
            one_in_flight_keeps_the_order
            a_worker_fetches_only_what_it_asked_for
            next_can_be_dropped_without_loss
            a_task_of_a_newer_version_waits_for_a_newer_worker
            a_task_of_a_newer_version_passes_older_workers
            a_worker_that_stops_leaves_the_rest_to_others_at_once
            a_worker_that_waits_can_be_closed
            the_deliveries_of_a_crashed_worker_are_claimed
            a_dropped_delivery_is_delivered_again_after_its_lease
            a_message_that_kills_its_workers_becomes_a_dead_letter
            a_live_worker_keeps_its_deliveries
            a_lost_lease_is_reported_and_a_late_verdict_changes_nothing
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

/// Defines one test for each name.
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
