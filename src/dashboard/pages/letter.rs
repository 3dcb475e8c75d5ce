//! Shows one dead letter: its reason and its message. Buttons replay, edit or delete it.

use http::HeaderMap;
use maud::{Markup, PreEscaped, html};

use super::super::{
    context::{Context, Scope},
    fault::Fault,
    layout::{DashboardPage, age, button, hidden_fields, number, size, time, token_field},
    preview::{self, Preview},
};
use crate::{message::Message, transport::DeadLetter};

/// The maximum length of a payload that the form can edit, in bytes.
const MAX_EDITED: usize = 256 << 10;

pub(super) async fn page(cx: &Context) -> Result<DashboardPage, Fault> {
    let scope = cx.scope().await?;
    let id = cx.form.need("id")?.into();
    let letter = scope.handle.dead_letters().get(&id).await?;
    let letter = letter.ok_or_else(|| {
        Fault::not_found("this dead letter no longer exists: it was replayed or deleted, or newer letters have taken its place")
    })?;
    let message = letter.message();
    let fixed_part = html! {
        (facts(cx, &scope, &letter))
        @match &message {
            Ok(message) => {
                (headers(message.headers()))
                (payload(message.payload()))
                (buttons(cx, &scope, &letter))
                (edit_form(cx, &scope, &letter, message))
            }
            Err(undecodable) => {
                p.error { "The message cannot be read: " (preview::line(&undecodable.reason)) }
                h2 { "Fields" }
                @for (field, value) in undecodable.fields.iter().take(50) {
                    h3 { code { (preview::lossy_line(&field[..field.len().min(200)])) } }
                    (payload_preview(value))
                }
                (buttons(cx, &scope, &letter))
            }
        }
    };
    let title = match &message {
        Ok(message) => format!("Dead letter {}", preview::excerpt(message.name(), 80)),
        Err(_) => "Dead letter".to_owned(),
    };
    Ok(DashboardPage::new(title, html! {})
        .fixed_part(fixed_part)
        .in_scope(&scope))
}

fn facts(cx: &Context, scope: &Scope, letter: &DeadLetter) -> Markup {
    let parameters = scope.parameters().into_iter();
    let task_link = cx.link(
        "/task",
        parameters.chain([("id", letter.message_id.as_str())]),
    );
    html! {
        p.reason.failure { (preview::line(&letter.reason)) }
        dl.facts {
            div { dt { "died" } dd { (age(letter.died_at)) " · " (time(letter.died_at)) } }
            div { dt { "attempts" } dd { (number(letter.attempts.into())) } }
            div { dt { "letter" } dd { code { (letter.id) } } }
            div { dt { "message" } dd { a href=(task_link) { code { (preview::line(&letter.message_id)) } } } }
        }
    }
}

/// The headers of a message.
pub(super) fn headers(headers: &HeaderMap) -> Markup {
    html! {
        @if !headers.is_empty() {
            h2 { "Headers" }
            dl.facts {
                @for (name, value) in headers.iter().take(200) {
                    div { dt { (name) } dd { code { (preview::excerpt(&String::from_utf8_lossy(value.as_bytes()), 2_000)) } } }
                }
            }
        }
    }
}

/// The payload of a message.
pub(super) fn payload(payload: &[u8]) -> Markup {
    html! {
        h2 { "Payload" }
        (payload_preview(payload))
    }
}

fn payload_preview(payload: &[u8]) -> Markup {
    let preview = Preview::of(payload);
    html! {
        p.quiet {
            (preview.format) ", " (size(payload.len()))
            @if preview.is_cut { ". Only its beginning is shown." }
        }
        @if !preview.text.is_empty() {
            pre.payload tabindex="0" role="region" aria-label="Payload" { code { (preview.text) } }
        }
    }
}

fn buttons(cx: &Context, scope: &Scope, letter: &DeadLetter) -> Markup {
    let [stream, group] = scope.parameters();
    let id = ("id", letter.id.as_str());
    html! {
        p.buttons {
            (button(cx, "Replay…", &[("do", "replay"), id, stream, group]))
            (button(cx, "Delete…", &[("do", "purge"), id, stream, group]))
        }
    }
}

fn edit_form(cx: &Context, scope: &Scope, letter: &DeadLetter, message: &Message) -> Markup {
    if cx.config.is_read_only {
        return html! {};
    }
    let text = std::str::from_utf8(message.payload()).ok();
    let text = text.filter(|text| text.len() <= MAX_EDITED && !text.contains('\0'));
    let Some(text) = text else {
        return html! {
            p.quiet { "The payload cannot be edited here: it is no text, or longer than " (size(MAX_EDITED)) "." }
        };
    };
    let headers = message.headers().iter();
    let headers =
        headers.filter_map(|(name, value)| Some(format!("{name}: {}", value.to_str().ok()?)));
    let headers: Vec<_> = headers.collect();
    html! {
        details {
            summary { "Edit and replay" }
            form.edit method="post" action=(cx.link("/confirm", [])) {
                (token_field(cx))
                (hidden_fields(scope.parameters()))
                (hidden_fields([("do", "replay-edited"), ("id", letter.id.as_str())]))
                @if text.contains("\r\n") { (hidden_fields([("crlf", "1")])) }
                label { "Name" input name="name" value=(message.name()) required autocomplete="off"; }
                label { "Headers, one on each line"
                    textarea name="headers" rows=(headers.len().clamp(2, 10)) spellcheck="false" autocomplete="off" {
                        // A browser removes a line feed at the start of a text area, so one is
                        // added.
                        (PreEscaped("\n")) (headers.join("\n"))
                    }
                }
                label { "Payload"
                    textarea name="payload" rows=(text.lines().count().clamp(4, 24)) spellcheck="false" autocomplete="off" {
                        (PreEscaped("\n")) (text)
                    }
                }
                p.buttons { button { "Look at the change…" } }
            }
        }
    }
}
