//! The overview: all streams with their numbers, and the totals.

use std::time::SystemTime;

use maud::{Markup, html};

use super::super::{
    context::Context,
    fault::Fault,
    layout::{DashboardPage, age, number, number_cell, table},
    preview,
    sampler::{MAX_STEP_STREAMS, Sample, Totals},
};
use crate::{message::Name, transport::StreamStats};

/// A page of the list of streams.
pub(in crate::dashboard) struct ListedStreams {
    pub(in crate::dashboard) streams: Vec<(Name, Option<Sample>)>,
    /// The number of streams that the search has found, on all pages.
    pub(in crate::dashboard) found: usize,
    /// The number of this page, from 1.
    pub(in crate::dashboard) page: usize,
    /// The number of pages.
    pub(in crate::dashboard) pages: usize,
}

/// Lists the streams that the request selects, with samples that are at most a second old.
pub(in crate::dashboard) async fn list_streams(cx: &Context) -> Result<ListedStreams, Fault> {
    let samples = &cx.state.samples;
    samples.ensure_listed(&cx.config).await?;
    let search = cx.form.get("q").unwrap_or_default();
    let sort_number = |stats: &StreamStats| {
        let mut totals = Totals::default();
        totals.add(stats);
        match cx.form.get("by") {
            Some("waiting") => totals.waiting,
            Some("running") => totals.running,
            Some("dead") => totals.dead,
            _ => 0,
        }
    };
    let mut selected = samples.select(|name| name.contains(search), sort_number);
    // The sort is stable: streams with equal numbers stay in the order of their names.
    selected.sort_by_key(|(number, _)| std::cmp::Reverse(*number));
    let found = selected.len();
    let pages = found.div_ceil(MAX_STEP_STREAMS).max(1);
    let page = cx.form.number("page")?.unwrap_or(1).clamp(1, pages);
    let shown = selected
        .into_iter()
        .skip((page - 1) * MAX_STEP_STREAMS)
        .take(MAX_STEP_STREAMS);
    let shown: Vec<_> = shown.map(|(_, name)| name).collect();
    samples.refresh(&cx.config, &shown).await?;
    let streams = shown.into_iter().map(|name| {
        let sample = samples.get(&name);
        (name, sample)
    });
    Ok(ListedStreams {
        streams: streams.collect(),
        found,
        page,
        pages,
    })
}

pub(super) async fn page(cx: &Context) -> Result<DashboardPage, Fault> {
    let listed = list_streams(cx).await?;
    let totals = cx.state.samples.totals();
    let live_part = html! {
        (totals_section(&totals))
        @if let Some(error) = cx.state.samples.error() {
            p.error { "The samples of the totals are not up to date: " (preview::line(&error)) }
        }
        (cx.state.samples.hour().charts())
        (streams(cx, &listed))
    };
    Ok(DashboardPage::new("Overview", live_part).fixed_part(search_form(cx)))
}

fn totals_section(totals: &Totals) -> Markup {
    let waiting = match totals.uncounted_groups {
        0 => number(totals.waiting),
        _ => format!("{}+", number(totals.waiting)),
    };
    let numbers = [
        ("streams", number(totals.streams as u64), "plain"),
        ("waiting", waiting, "waits"),
        ("running", number(totals.running), "runs"),
        ("delayed", number(totals.delayed), "waits"),
        ("parked", number(totals.parked), "waits"),
        (
            "dead",
            number(totals.dead),
            if totals.dead == 0 { "plain" } else { "dead" },
        ),
    ];
    html! {
        section aria-label="Totals" {
            dl.sums {
                @for (name, value, class) in numbers {
                    div.(class) { dt { (name) } dd { (value) } }
                }
            }
            p.quiet {
                @match totals.oldest_sample {
                    Some(oldest) => { "Sums of samples, the oldest from " (age(oldest)) "." }
                    None => { "There are no samples yet." }
                }
                @if totals.unsampled_streams > 0 { " " (number(totals.unsampled_streams as u64)) " streams are not sampled yet." }
                @if totals.uncounted_groups > 0 {
                    " The number of waiting messages is unknown for " (number(totals.uncounted_groups as u64)) " groups."
                }
            }
        }
    }
}

fn streams(cx: &Context, listed: &ListedStreams) -> Markup {
    let rows = html! {
        @for (name, sample) in &listed.streams { (row(cx, name, sample.as_ref())) }
    };
    let caption = match listed.found {
        1 => "1 stream".to_owned(),
        found => format!("{} streams", number(found as u64)),
    };
    let head = [
        "stream", "#waiting", "#running", "#delayed", "#parked", "#dead", "#workers", "state",
        "sampled",
    ];
    html! {
        @if listed.streams.is_empty() {
            p { "No stream is found." }
        } @else {
            p.quiet { (caption) }
            (table("Streams", &head, &rows))
        }
        @if listed.pages > 1 {
            nav.pager aria-label="Pages" {
                @if listed.page > 1 {
                    a href=(cx.link_here(&[("page", &(listed.page - 1).to_string())])) { "Previous" }
                }
                span { "page " (listed.page) " of " (listed.pages) }
                @if listed.page < listed.pages {
                    a href=(cx.link_here(&[("page", &(listed.page + 1).to_string())])) { "Next" }
                }
            }
        }
    }
}

fn row(cx: &Context, name: &Name, sample: Option<&Sample>) -> Markup {
    let link = cx.link("/stream", [("stream", name.as_str())]);
    let stats = sample.and_then(|sample| sample.stats.as_ref());
    html! {
        tr {
            th scope="row" { a href=(link) { (preview::excerpt(name, 80)) } }
            @match stats {
                None => { td colspan="8" { "no sample yet" } }
                Some(stats) => {
                    @let mut totals = Totals::default();
                    @let () = totals.add(stats);
                    @if totals.uncounted_groups > 0 { td.num title="the server does not know the number" { (number(totals.waiting)) "+" } }
                    @else { (number_cell(totals.waiting, "waits")) }
                    (number_cell(totals.running, "runs"))
                    (number_cell(totals.delayed, "waits"))
                    (number_cell(totals.parked, "waits"))
                    @if totals.dead > 0 && stats.groups.len() == 1 {
                        td.num.dead { a href=(cx.link("/dead", [("stream", name.as_str()), ("group", &stats.groups[0].group)])) { (number(totals.dead)) } }
                    } @else { (number_cell(totals.dead, "dead")) }
                    @let workers = stats.groups.iter().map(|group| group.consumers).sum();
                    (number_cell(workers, "plain"))
                    td { (state(stats, sample.is_some_and(|sample| sample.is_paused))) }
                    td.quiet { (age(sample.map_or(SystemTime::UNIX_EPOCH, |sample| sample.at))) }
                }
            }
        }
    }
}

/// Shows if the stream is paused, or if a group with messages has no worker.
fn state(stats: &StreamStats, is_paused: bool) -> Markup {
    let abandoned_groups = stats.groups.iter().filter(|group| {
        // An unknown number of waiting messages counts as one.
        let waits = group.lag.unwrap_or(1) + group.pending + group.delayed;
        group.consumers == 0 && waits > 0
    });
    let abandoned_count = abandoned_groups.count();
    html! {
        @if stats.groups.is_empty() { span.quiet { "no group" } }
        @else if is_paused { span.warn { "paused" } }
        @else if abandoned_count > 0 { span.warn { "no worker" } }
        @else { span.good { "ok" } }
    }
}

fn search_form(cx: &Context) -> Markup {
    let by = cx.form.get("by").unwrap_or("name");
    let orders = [
        ("name", "name"),
        ("waiting", "most waiting"),
        ("running", "most running"),
        ("dead", "most dead"),
    ];
    html! {
        section aria-labelledby="find" {
            h2 #find { "Find streams" }
            form.filter method="get" action=(cx.link("/", [])) {
                label { "Name contains " input name="q" value=[cx.form.get("q")] autocomplete="off"; }
                label { "Order " select name="by" {
                    @for (value, text) in orders {
                        option value=(value) selected[value == by] { (text) }
                    }
                } }
                button { "Show" }
            }
        }
    }
}
