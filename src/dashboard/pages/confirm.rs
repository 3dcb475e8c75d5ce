//! The confirmation of a change.

use maud::html;

use super::super::{
    change::{Change, ChangeKind},
    context::Context,
    fault::Fault,
    forgery,
    layout::{DashboardPage, hidden_fields, number, size, token_field},
    preview::{self, Preview},
};
use crate::transport::Selection;

pub(super) async fn page(cx: &Context) -> Result<DashboardPage, Fault> {
    cx.may_change()?;
    let change = Change::of(&cx.form)?;
    let handle = change.handle(&cx.config);
    // A sentence with the number of messages, for changes that do not list their messages.
    let count_text = match &change.kind {
        ChangeKind::DeadLetters(_, Selection::All) => {
            let count = handle.dead_letters().count().await?;
            Some(format!("{} dead letters exist now.", number(count)))
        }
        ChangeKind::PurgeWaiting => {
            let stats = handle.stats().await?;
            let group = change.group.as_ref().and_then(|group| stats.group(group));
            group.map(|group| match group.waiting() {
                Some(waiting) => format!("{} messages would be removed now.", number(waiting)),
                None => "Their number is unknown.".to_owned(),
            })
        }
        _ => None,
    };
    // The form repeats the parameters of this request.
    let fields = cx
        .form
        .pairs()
        .filter(|(name, _)| *name != forgery::TOKEN_FIELD);
    let mut back = vec![("stream", change.stream.as_str())];
    back.extend(change.group.as_ref().map(|group| ("group", group.as_str())));
    let fixed_part = html! {
        p { (change.effect()) }
        @if let Some(text) = count_text { p { strong { (text) } } }
        dl.facts {
            div { dt { "stream" } dd { (preview::line(&change.stream)) } }
            @if let Some(group) = &change.group { div { dt { "group" } dd { (preview::line(group)) } } }
            @match &change.kind {
                ChangeKind::Pause(_, reason) | ChangeKind::Cancel(_, reason) | ChangeKind::CancelAll(_, _, reason) => {
                    div { dt { "reason" } dd { (preview::line(reason)) } }
                }
                ChangeKind::DeadLetters(_, Selection::Ids(ids)) => {
                    div { dt { "letters" } dd { @for id in ids.iter().take(20) { code { (preview::line(id)) } " " } @if ids.len() > 20 { "and " (ids.len() - 20) " more" } } }
                }
                ChangeKind::ReplayEdited(_, edit) => {
                    div { dt { "new payload" } dd { (size(edit.payload().len())) } }
                }
                _ => {}
            }
        }
        @if let ChangeKind::ReplayEdited(_, edit) = &change.kind {
            pre.payload tabindex="0" role="region" aria-label="New payload" { code { (Preview::of(edit.payload().as_bytes()).text) } }
        }
        form method="post" action=(cx.link("/act", [])) {
            (token_field(cx))
            (hidden_fields(fields))
            p.buttons {
                button.danger[change.is_destructive()] { (change.title()) }
                a.button href=(cx.link(change.page(), back)) { "Do nothing" }
            }
        }
    };
    Ok(DashboardPage::new(format!("{}?", change.title()), html! {}).fixed_part(fixed_part))
}
