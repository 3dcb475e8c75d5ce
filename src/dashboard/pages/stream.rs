//! A stream: its groups, their consumers, pauses, and the entry up to which it is trimmed.

use maud::{Markup, html};

use super::super::{
    change::target_text,
    context::{Context, Scope},
    fault::Fault,
    history::Hour,
    layout::{DashboardPage, age, button, duration, number, number_cell, table, worker_name},
    preview,
};
use crate::{
    message::Name,
    transport::{
        ConsumerStats, GroupStats, ListedMessage, MessageQuery, MessageState, Pause, StreamStats,
    },
};

/// The maximum number of groups that a page shows in detail.
const MAX_GROUPS: usize = 20;
/// The maximum number of consumers that a page shows.
const MAX_CONSUMERS: usize = 100;

pub(super) async fn page(cx: &Context) -> Result<DashboardPage, Fault> {
    let (stream, handle) = cx.stream()?;
    let stats = handle.stats().await?;
    if stats.groups.is_empty() {
        let live_part = html! {
            p { (number(stats.entries)) " entries, " (number(stats.delayed)) " delayed tasks, and no group yet: no worker has read the stream, or it does not exist." }
        };
        return Ok(DashboardPage::new("Stream", live_part).of_stream(&stream));
    }
    let scope = cx.scope().await?;
    let pauses = scope.handle.control().pauses().await?;
    let consumers = scope.handle.consumers().await?.unwrap_or_default();
    let hour = Hour::of(&scope.handle.history().await?);
    // For each group, its oldest running message that is on the stream. Not read in memory.
    let mut oldest_running = Vec::new();
    for group in stats.groups.iter().take(MAX_GROUPS) {
        let query = MessageQuery::of(MessageState::Running)
            .max(1)
            .after("stream/");
        let group_handle = handle.group(&group.group);
        let oldest = match cx.config.handle.redis_key() {
            Some(_) => group_handle
                .messages()
                .list(query)
                .await?
                .messages
                .into_iter()
                .next(),
            None => None,
        };
        oldest_running.push((group, oldest));
    }
    let live_part = html! {
        (groups(cx, &stats))
        (pause_notice(&pauses))
        h2 { "The last hour of " (preview::line(&scope.group)) }
        (hour.charts())
        (consumer_table(&scope, &consumers))
        (trimming(&stats, &oldest_running))
        (clean_up(&scope, &stats, &consumers))
    };
    let fixed_part = html! {
        p.buttons {
            (button(cx, "Pause this group…", &[("do", "pause"), ("target", "group"), ("stream", &scope.stream), ("group", &scope.group)]))
            (button(cx, "Pause the stream…", &[("do", "pause"), ("target", "stream"), ("stream", &scope.stream), ("group", &scope.group)]))
            (button(cx, "Purge what waits…", &[("do", "purge-waiting"), ("stream", &scope.stream), ("group", &scope.group)]))
        }
    };
    let title = format!("Stream {}", preview::excerpt(&stream, 80));
    Ok(DashboardPage::new(title, live_part)
        .fixed_part(fixed_part)
        .in_scope(&scope))
}

fn groups(cx: &Context, stats: &StreamStats) -> Markup {
    let link = |path: &str, group: &Name| {
        cx.link(
            path,
            [("stream", stats.stream.as_str()), ("group", group.as_str())],
        )
    };
    let rows = html! {
        @for group in stats.groups.iter().take(100) {
            tr {
                th scope="row" { a href=(link("/stream", &group.group)) { (preview::line(&group.group)) } }
                @match group.lag {
                    Some(lag) => { (linked_number(lag, "waits", &link("/waiting", &group.group))) }
                    None => { td.num { a href=(link("/waiting", &group.group)) { "unknown" } } }
                }
                (linked_number(group.pending, "runs", &link("/running", &group.group)))
                (linked_number(group.delayed, "waits", &link("/delayed", &group.group)))
                (linked_number(group.parked, "waits", &link("/limits", &group.group)))
                (linked_number(group.dead, "dead", &link("/dead", &group.group)))
                td { @match group.oldest_pending { Some(oldest) => { (duration(oldest)) } None => { "–" } } }
                (number_cell(group.consumers, "plain"))
            }
        }
    };
    let head = [
        "group",
        "#waiting",
        "#running",
        "#delayed",
        "#parked",
        "#dead",
        "oldest running",
        "#workers",
    ];
    html! {
        p { (number(stats.entries)) " entries on the stream, " (number(stats.delayed)) " tasks delayed by their senders." }
        (table("Groups", &head, &rows))
    }
}

fn linked_number(value: u64, class: &str, link: &str) -> Markup {
    match value {
        0 => number_cell(0, class),
        _ => html! { td.num.(class) { a href=(link) { (number(value)) } } },
    }
}

fn pause_notice(pauses: &[Pause]) -> Markup {
    html! {
        @if !pauses.is_empty() {
            section.notice aria-label="Pauses" {
                @for pause in pauses {
                    p { strong { "Paused: " (target_text(&pause.target)) } ", " (age(pause.since)) ": " (preview::line(&pause.reason)) }
                }
            }
        }
    }
}

fn consumer_table(scope: &Scope, consumers: &[ConsumerStats]) -> Markup {
    let rows = html! {
        @for consumer in consumers.iter().take(MAX_CONSUMERS) {
            tr {
                th scope="row" { (worker_name(&consumer.consumer)) }
                (number_cell(consumer.pending, "runs"))
                td { (duration(consumer.idle)) }
                td { @if consumer.foreign { span.warn { "foreign" } } @else { "campanile" } }
            }
        }
    };
    html! {
        h2 { "Consumers of " (preview::line(&scope.group)) }
        @if consumers.is_empty() { p { "The group has no consumers." } }
        @else { (table("Consumers", &["consumer", "#running", "last sign of life", "made by"], &rows)) }
        @if consumers.len() > MAX_CONSUMERS {
            p.quiet { (number((consumers.len() - MAX_CONSUMERS) as u64)) " more consumers are not shown." }
        }
    }
}

/// Shows the oldest entry that any group still needs, with this group. The stream is trimmed up to
/// this entry.
fn trimming(
    stats: &StreamStats,
    oldest_running: &[(&GroupStats, Option<ListedMessage>)],
) -> Markup {
    // A group needs its oldest running entry. Without a running entry, it needs those that it has
    // not read.
    let mut needed_entries: Vec<_> = oldest_running
        .iter()
        .filter_map(|(group, oldest)| {
            let needed = match oldest {
                Some(message) => message.entry.clone(),
                None if group.lag == Some(0) => return None,
                None => group.last_delivered.clone().unwrap_or_else(|| "0-0".into()),
            };
            Some((sort_key(&needed), needed, *group, oldest.as_ref()))
        })
        .collect();
    needed_entries.sort_by_key(|(key, ..)| *key);
    html! {
        h2 { "Kept entries" }
        @match needed_entries.first() {
            None => { p { "No group needs an entry, so the stream is trimmed to its end." } }
            Some((_, needed, group, oldest)) => {
                p {
                    "The stream is trimmed up to " code { (needed) } ", which "
                    @match oldest {
                        Some(message) => {
                            "is running in the group " strong { (preview::line(&group.group)) }
                            @if let Some(consumer) = &message.consumer { " by " (worker_name(consumer)) }
                            "."
                        }
                        None => { "the group " strong { (preview::line(&group.group)) } " has read last." }
                    }
                    @if stats.groups.len() > MAX_GROUPS { " Only the first " (MAX_GROUPS) " groups were looked at." }
                }
            }
        }
    }
}

/// Returns a key that sorts entries by their ids.
fn sort_key(id: &str) -> (u64, u64) {
    let (milliseconds, sequence) = id.split_once('-').unwrap_or((id, "0"));
    (
        milliseconds.parse().unwrap_or(0),
        sequence.parse().unwrap_or(0),
    )
}

/// Shows the commands that drop abandoned groups and the consumers of other libraries.
fn clean_up(scope: &Scope, stats: &StreamStats, consumers: &[ConsumerStats]) -> Markup {
    let Some(key) = scope.handle.redis_key() else {
        return html! {};
    };
    let abandoned_groups: Vec<_> = stats
        .groups
        .iter()
        .filter(|group| group.consumers == 0 && group.lag != Some(0))
        .take(20)
        .collect();
    let foreign_consumers: Vec<_> = consumers.iter().filter(|it| it.foreign).take(20).collect();
    // In a namespace, the key of the stream differs from the name of the stream. The commands then
    // need the option `--namespace`.
    let is_in_namespace = key != scope.stream;
    let stream = quoted(&scope.stream);
    html! {
        @if !abandoned_groups.is_empty() || !foreign_consumers.is_empty() {
            h2 { "Left behind" }
            @if !abandoned_groups.is_empty() {
                p { "These groups have no worker, and keep entries on the stream. If nobody will serve a group again, drop it. Its dead letters stay." }
                @for group in abandoned_groups {
                    pre tabindex="0" { code { "campanile --stream " (stream) " groups drop " (quoted(&group.group)) } }
                }
            }
            @if !foreign_consumers.is_empty() {
                p { "These consumers belong to another library. Deleting one drops its " em { "unsettled" } " deliveries, so look at what it runs first." }
                @for consumer in foreign_consumers {
                    pre tabindex="0" { code { "campanile --stream " (stream) " --group " (quoted(&scope.group)) " consumers drop " (quoted(&consumer.consumer)) } }
                }
            }
            @if is_in_namespace {
                p.quiet { "The stream is in a namespace: add " code { "--namespace" } "." }
            }
        }
    }
}

/// Quotes text for a shell.
fn quoted(text: &str) -> String {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:/".contains(&byte);
    match !text.is_empty() && text.bytes().all(is_plain) {
        true => text.to_owned(),
        false => format!("'{}'", preview::line(text).replace('\'', r"'\''")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_in_a_command_cannot_leave_its_quotes() {
        assert_eq!(quoted("orders.v2"), "orders.v2");
        assert_eq!(quoted("a b"), "'a b'");
        assert_eq!(quoted("';rm -rf /;'"), r"''\'';rm -rf /;'\'''");
        assert_eq!(quoted(""), "''");
    }
}
