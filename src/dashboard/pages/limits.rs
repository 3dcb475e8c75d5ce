//! Shows why messages are parked: keys of shared limits, paused names, and versions for newer
//! workers.

use maud::{Markup, html};

use super::super::{
    context::Context,
    fault::Fault,
    layout::{DashboardPage, number, number_cell, table},
    preview,
};
use crate::transport::ParkedKey;

pub(super) async fn page(cx: &Context) -> Result<DashboardPage, Fault> {
    let scope = cx.scope().await?;
    let parked = scope.handle.messages().parked().await?;
    let live_part = html! {
        p.quiet { "The first 100 keys of shared limits with parked messages, the names that are parked by a pause, and the versions of names that all workers are too old for. A key without parked messages is not listed." }
        @if parked.is_empty() { p { "No message is parked." } } @else { (list(&parked)) }
    };
    Ok(DashboardPage::new("Limits", live_part).in_scope(&scope))
}

fn list(parked: &[ParkedKey]) -> Markup {
    let rows = html! {
        @for key in parked {
            tr {
                th scope="row" {
                    @match (&key.limit, &key.name, key.version) {
                        (Some(limit), ..) => {
                            @let (limit_name, limit_key) = limit.split_once(':').unwrap_or((limit, ""));
                            (preview::excerpt(limit_name, 80)) " " code { (preview::excerpt(limit_key, 80)) }
                        }
                        (None, Some(name), Some(version)) => { "version " (version) " of " (preview::excerpt(name, 80)) ", for newer workers" }
                        (None, Some(name), None) => { "the paused name " (preview::excerpt(name, 80)) }
                        (None, None, _) => { "?" }
                    }
                }
                (number_cell(key.parked, "waits"))
                td.num { @if key.limit.is_some() { (number(key.taken)) } @else { "–" } }
                td.num { @match key.permits { Some(permits) => { (number(permits)) } None => { "–" } } }
            }
        }
    };
    table(
        "Keys",
        &["limit and key", "#parked", "#permits taken", "#permits"],
        &rows,
    )
}
