//! The lists of the messages that wait, run or are delayed, and the page of one of these messages.

use maud::{Markup, html};

use super::{
    super::{
        context::{Context, Scope},
        fault::Fault,
        layout::{DashboardPage, age, button, duration, number, size, table, worker_name},
        preview,
    },
    letter,
};
use crate::transport::{ListedMessage, MessagePage, MessageQuery, MessageState};

/// The maximum number of messages on a page.
const MAX_MESSAGES: usize = 50;

pub(super) async fn page(cx: &Context, state: MessageState) -> Result<DashboardPage, Fault> {
    let scope = cx.scope().await?;
    let mut query = MessageQuery::of(state).max(MAX_MESSAGES);
    query.after = cx.form.get("after").map(str::to_owned);
    let entry = cx.form.get("entry");
    if entry.is_some() {
        // A link to one message sets `after` so that the message is the first of the list.
        query = query.max(1);
    }
    let page = scope.handle.messages().list(query).await?;
    let (title, note) = match state {
        MessageState::Waiting => (
            "Waiting messages",
            "Workers can fetch these now, redeliveries first.",
        ),
        MessageState::Running => (
            "Running messages",
            "Workers have fetched these and have not settled them. The last sign of life is a renewal of the lease, not the start.",
        ),
        MessageState::Delayed => (
            "Delayed messages",
            "These are not due: they wait for their next attempt, or their senders have delayed them.",
        ),
    };
    if let (Some(entry), Some(message)) = (entry, page.messages.first()) {
        if message.entry == entry {
            return Ok(message_page(&scope, message));
        }
        return Err(Fault::not_found(
            "this message has moved on; list the messages again",
        ));
    } else if entry.is_some() {
        return Err(Fault::not_found(
            "this message has moved on; list the messages again",
        ));
    }
    let live_part = html! {
        p.quiet { (note) }
        (list(cx, &scope, state, &page))
    };
    let fixed_part = html! {
        @if state == MessageState::Waiting {
            p.buttons { (button(cx, "Purge what waits…", &[("do", "purge-waiting"), scope.parameters()[0], scope.parameters()[1]])) }
        }
    };
    Ok(DashboardPage::new(title, live_part)
        .fixed_part(fixed_part)
        .in_scope(&scope))
}

fn list(cx: &Context, scope: &Scope, state: MessageState, page: &MessagePage) -> Markup {
    // The link starts the list after the previous message. Redeliveries are listed first, so the
    // first message of the stream is at the start of the stream.
    let link = |previous: Option<&ListedMessage>, message: &ListedMessage| {
        let after = match previous {
            None => cx.form.get("after").unwrap_or_default().to_owned(),
            Some(previous) if previous.on_stream == message.on_stream => position(state, previous),
            Some(_) => "stream/".to_owned(),
        };
        let parameters = scope.parameters().into_iter();
        let of_message = [("after", after.as_str()), ("entry", &message.entry)];
        // In memory there are no links, because a position soon belongs to another message.
        let is_stable = scope.handle.redis_key().is_some();
        is_stable.then(|| cx.link(&cx.path, parameters.chain(of_message)))
    };
    let rows = html! {
        @for (index, message) in page.messages.iter().enumerate() {
            @let previous = index.checked_sub(1).and_then(|index| page.messages.get(index));
            tr {
                th scope="row" {
                    @let name = match &message.content {
                        Ok(message) => preview::excerpt(message.name(), 60),
                        Err(_) => "(cannot be read)".to_owned(),
                    };
                    @match link(previous, message) {
                        Some(link) => { a href=(link) { (name) } }
                        None => { (name) }
                    }
                }
                td { a href=(cx.link("/task", scope.parameters().into_iter().chain([("id", message.id.as_str())]))) { code { (preview::excerpt(&message.id, 48)) } } }
                td.num { (number(message.attempt.0.into())) }
                @match state {
                    MessageState::Running => {
                        td { (worker_name(message.consumer.as_deref().unwrap_or("?"))) }
                        td { @match message.idle { Some(idle) => { (duration(idle)) " ago" } None => { "–" } } }
                    }
                    MessageState::Delayed => { td { @match message.due { Some(due) => { (age(due)) } None => { "?" } } } }
                    MessageState::Waiting => {}
                }
                td { @match &message.content { Ok(it) => { @match it.parts().accepted_at { Some(at) => { (age(at)) } None => { "–" } } } Err(_) => { "–" } } }
                td.num { (size(content_size(message))) }
                td.excerpt { (content_excerpt(message)) }
            }
        }
    };
    let head: &[&str] = match state {
        MessageState::Waiting => &[
            "name",
            "id",
            "#next attempt",
            "accepted",
            "#size",
            "payload",
        ],
        MessageState::Running => &[
            "name",
            "id",
            "#attempt",
            "consumer",
            "last sign of life",
            "accepted",
            "#size",
            "payload",
        ],
        MessageState::Delayed => &[
            "name",
            "id",
            "#next attempt",
            "due",
            "accepted",
            "#size",
            "payload",
        ],
    };
    html! {
        @if page.messages.is_empty() { p { "There are none." } }
        @else { (table("Messages", head, &rows)) }
        @if let Some(next) = &page.next {
            p.pager { a href=(cx.link_here(&[("after", next)])) { "Next page" } }
        }
    }
}

/// Returns the position of a message in the list. A list with this position in `after` starts with
/// the next message.
fn position(state: MessageState, message: &ListedMessage) -> String {
    let list = if message.on_stream { "stream" } else { "again" };
    let at = match (state, message.due) {
        (MessageState::Delayed, Some(due)) => {
            let due = due.duration_since(std::time::SystemTime::UNIX_EPOCH);
            format!("{} {}", due.unwrap_or_default().as_millis(), message.entry)
        }
        _ => message.entry.clone(),
    };
    format!("{list}/{at}")
}

/// Returns the size of a message's payload, or of its fields if they cannot be decoded.
pub(in crate::dashboard) fn content_size(message: &ListedMessage) -> usize {
    match &message.content {
        Ok(message) => message.payload().len(),
        Err(undecodable) => {
            let fields = undecodable.fields.iter();
            fields.map(|(field, value)| field.len() + value.len()).sum()
        }
    }
}

fn content_excerpt(message: &ListedMessage) -> String {
    match &message.content {
        Ok(message) => {
            let payload = message.payload();
            preview::excerpt(
                &String::from_utf8_lossy(&payload[..payload.len().min(400)]),
                80,
            )
        }
        Err(undecodable) => preview::excerpt(&undecodable.reason, 80),
    }
}

fn message_page(scope: &Scope, message: &ListedMessage) -> DashboardPage {
    let fixed_part = html! {
        dl.facts {
            div { dt { "id" } dd { code { (preview::line(&message.id)) } } }
            div { dt { "entry" } dd { code { (preview::line(&message.entry)) } } }
            div { dt { "attempt" } dd { (message.attempt.0) } }
            @if let Some(consumer) = &message.consumer { div { dt { "consumer" } dd { code { (preview::line(consumer)) } } } }
            @if let Some(due) = message.due { div { dt { "due" } dd { (age(due)) } } }
        }
        @match &message.content {
            Ok(message) => { (letter::headers(message.headers())) (letter::payload(message.payload())) }
            Err(undecodable) => { p.error { "The message cannot be read: " (preview::line(&undecodable.reason)) } }
        }
    };
    let name = match &message.content {
        Ok(message) => preview::excerpt(message.name(), 80),
        Err(_) => preview::excerpt(&message.entry, 80),
    };
    DashboardPage::new(format!("Message {name}"), html! {})
        .fixed_part(fixed_part)
        .in_scope(scope)
}
