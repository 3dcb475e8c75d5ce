//! The workers of a group, and what each of them runs.

use maud::{Markup, html};

use super::super::{
    context::{Context, Scope},
    fault::Fault,
    layout::{Page, count, duration, number, table},
    preview,
};
use crate::transport::ConsumerStats;

/// The most workers that are shown.
const MOST: usize = 200;

pub(super) async fn page(cx: &Context) -> Result<Page, Fault> {
    let scope = cx.scope().await?;
    let consumers = scope.handle.consumers().await?.unwrap_or_default();
    let live = list(cx, &scope, &consumers);
    Ok(Page::new("Workers", live).of(&scope))
}

fn list(cx: &Context, scope: &Scope, consumers: &[ConsumerStats]) -> Markup {
    let rows = html! {
        @for consumer in consumers.iter().take(MOST) {
            tr {
                th scope="row" { code { (preview::line(&consumer.consumer)) } }
                (count(consumer.pending, "runs"))
                td { (duration(consumer.idle)) " ago" }
                td { @if consumer.foreign { span.warn { "foreign" } } @else { "campanile" } }
            }
        }
    };
    let head = ["worker", "#running", "last sign of life", "made by"];
    html! {
        @if consumers.is_empty() { p { "The group has no workers." } }
        @else { (table("Workers", &head, &rows)) }
        @if consumers.len() > MOST { p.quiet { (number((consumers.len() - MOST) as u64)) " more are not shown." } }
        p { a href=(cx.link("/running", scope.parameters())) { "What they run" } }
    }
}
