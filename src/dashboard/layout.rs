//! The frame of all pages, and the parts that they share.

use std::time::{Duration, SystemTime};

use http::{Response, StatusCode};
use maud::{DOCTYPE, Markup, html};

use super::{
    DashboardBody,
    context::{Context, Scope},
    fault::Fault,
    forgery, preview, service,
};
use crate::message::Name;

/// A page.
pub(super) struct DashboardPage {
    pub(super) title: String,
    /// The stream and the group of the page.
    pub(super) scope: Option<(Name, Option<Name>)>,
    /// All groups of the stream, for links to the other groups.
    pub(super) groups: Vec<Name>,
    /// The part that is replaced while the page is open.
    pub(super) live_part: Markup,
    /// The part below the live part. It is not replaced, because it may have forms.
    pub(super) fixed_part: Markup,
}

impl DashboardPage {
    pub(super) fn new(title: impl Into<String>, live_part: Markup) -> Self {
        Self {
            title: title.into(),
            scope: None,
            groups: Vec::new(),
            live_part,
            fixed_part: html! {},
        }
    }

    /// Adds the fixed part.
    pub(super) fn fixed_part(mut self, fixed_part: Markup) -> Self {
        self.fixed_part = fixed_part;
        self
    }

    pub(super) fn in_scope(mut self, scope: &Scope) -> Self {
        self.scope = Some((scope.stream.clone(), Some(scope.group.clone())));
        self.groups.clone_from(&scope.groups);
        self
    }

    pub(super) fn of_stream(mut self, stream: &Name) -> Self {
        self.scope = Some((stream.clone(), None));
        self
    }
}

/// The pages of a stream, in the order of the menu.
const TABS: [(&str, &str); 10] = [
    ("/stream", "Stream"),
    ("/waiting", "Waiting"),
    ("/running", "Running"),
    ("/delayed", "Delayed"),
    ("/dead", "Dead"),
    ("/tasks", "Tasks"),
    ("/workers", "Workers"),
    ("/schedules", "Schedules"),
    ("/pauses", "Pauses"),
    ("/limits", "Limits"),
];

/// Makes the response that shows a page.
pub(super) fn page_response(cx: &Context, page: DashboardPage) -> Response<DashboardBody> {
    frame(cx, StatusCode::OK, &page)
}

/// Makes the response that shows an error.
pub(super) fn fault_response(cx: &Context, fault: &Fault) -> Response<DashboardBody> {
    let may_retry = matches!(
        fault.status,
        StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT
    );
    let fixed_part = html! {
        p.error role="alert" { (preview::line(&fault.text)) }
        @if may_retry {
            p { "The connection is " strong { (cx.config.handle.state().to_string()) } ". The dashboard goes on when the server answers. " a href=(cx.link_here(&[])) { "Try again" } }
        }
        p { a href=(cx.link("/", [])) { "Back to the overview" } }
    };
    let page = DashboardPage::new(fault.title, html! {}).fixed_part(fixed_part);
    frame(cx, fault.status, &page)
}

/// Puts the frame around a page: the head, the menus and the footer.
fn frame(cx: &Context, status: StatusCode, page: &DashboardPage) -> Response<DashboardBody> {
    let here = cx.link_here(&[]);
    // The link to the live view names this page, without the prefix of the dashboard.
    let page_path = here.strip_prefix(&cx.config.prefix).unwrap_or(&here);
    let is_live = status == StatusCode::OK && !page.live_part.0.is_empty();
    let live_link = is_live.then(|| cx.link("/live", [("of", page_path)]));
    let menu = [
        ("/", "Overview"),
        ("/task", "Find a task"),
        ("/actions", "Changes"),
    ];
    let current = |path: &str| (cx.path == path).then_some("page");
    let html = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                title { (page.title) " · Campanile" }
                link rel="stylesheet" href=(cx.link("/style.css", []));
                script defer src=(cx.link("/script.js", [])) {}
            }
            body data-live=[live_link] {
                a.skip href="#main" { "Skip to the content" }
                header {
                    a.brand href=(cx.link("/", [])) { "Campanile" }
                    nav aria-label="Dashboard" {
                        @for (path, name) in menu {
                            a href=(cx.link(path, [])) aria-current=[current(path)] { (name) }
                        }
                    }
                    @if cx.config.is_read_only { span.badge { "read-only" } }
                    button #toggle type="button" hidden aria-pressed="true" { "Live" }
                }
                @if let Some((stream, group)) = &page.scope { (scope_bar(cx, page, stream, group.as_ref())) }
                main #main tabindex="-1" {
                    h1 { (page.title) }
                    p #fault.error role="alert" hidden {}
                    div #live { (page.live_part) }
                    (page.fixed_part)
                }
                footer {
                    "As of " (time(SystemTime::now())) ". "
                    a href=(here) { "Refresh" }
                }
            }
        }
    };
    service::html_response(status, html.into_string())
}

/// The names of the stream and the group, with links to the pages of the stream.
fn scope_bar(cx: &Context, page: &DashboardPage, stream: &Name, group: Option<&Name>) -> Markup {
    let group_text = group.map_or("", |group| group.as_str());
    html! {
        section.scope aria-label="Stream and group" {
            p {
                span.label { "stream " } strong { (preview::line(stream)) }
                @if let Some(group) = group {
                    " " span.label { "group " } strong { (preview::line(group)) }
                }
            }
            nav aria-label="Stream" {
                @for (path, name) in TABS {
                    a href=(cx.link(path, [("stream", stream.as_str()), ("group", group_text)]))
                        aria-current=[(cx.path == path).then_some("page")] { (name) }
                }
            }
            @if page.groups.len() > 1 {
                nav.groups aria-label="Groups" {
                    span.label { "other groups" }
                    @for other in page.groups.iter().filter(|it| Some(*it) != group).take(20) {
                        " " a href=(cx.link(&cx.path, [("stream", stream.as_str()), ("group", other)])) { (preview::line(other)) }
                    }
                }
            }
        }
    }
}

/// A time in UTC, to the second.
pub(super) fn time(at: SystemTime) -> Markup {
    let text = timestamp(at);
    html! { time datetime=(text) { (text) } }
}

/// A time, shown as its age. The time itself is the tooltip.
pub(super) fn age(at: SystemTime) -> Markup {
    let text = timestamp(at);
    let shown = match SystemTime::now().duration_since(at) {
        Ok(age) if age < Duration::from_secs(1) => "just now".to_owned(),
        Ok(age) => format!("{} ago", duration(coarse_age(age))),
        Err(ahead) => format!("in {}", duration(coarse_age(ahead.duration()))),
    };
    html! { time datetime=(text) title=(text) { (shown) } }
}

/// Truncates an age of ten minutes or more to whole minutes.
fn coarse_age(age: Duration) -> Duration {
    let seconds = age.as_secs();
    match seconds {
        0..600 => age,
        _ => Duration::from_secs(seconds - seconds % 60),
    }
}

/// Formats a time as UTC, to the second.
pub(super) fn timestamp(at: SystemTime) -> String {
    let at = jiff::Timestamp::try_from(at).ok();
    let at = at.and_then(|at| at.round(jiff::Unit::Second).ok());
    at.map_or_else(|| "an unknown time".to_owned(), |at| at.to_string())
}

/// Formats a duration for a reader: two units at most.
pub(super) fn duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0 => format!("{} ms", duration.as_millis()),
        1..=59 => format!("{seconds} s"),
        60..=3_599 if seconds.is_multiple_of(60) => format!("{} min", seconds / 60),
        60..=3_599 => format!("{} min {} s", seconds / 60, seconds % 60),
        3_600..=86_399 => format!("{} h {} min", seconds / 3_600, seconds % 3_600 / 60),
        _ => format!("{} d {} h", seconds / 86_400, seconds % 86_400 / 3_600),
    }
}

/// The name of a worker without the prefix `campanile-lease=<n>ms-`. The whole name is the tooltip.
pub(super) fn worker_name(name: &str) -> Markup {
    html! { code title=(preview::line(name)) { (preview::excerpt(short_worker(name), 60)) } }
}

pub(super) fn short_worker(name: &str) -> &str {
    let short = name.strip_prefix("campanile-lease=");
    let short = short.and_then(|rest| Some(rest.split_once("ms-")?.1));
    short.unwrap_or(name)
}

/// Formats a number with a space before every three digits.
pub(super) fn number(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            // A narrow no-break space.
            text.push('\u{202f}');
        }
        text.push(digit);
    }
    text
}

/// Formats a size in bytes.
pub(super) fn size(bytes: usize) -> String {
    match bytes {
        0..1024 => format!("{bytes} B"),
        1024..1_048_576 => format!("{:.1} KiB", bytes as f64 / 1024.0),
        _ => format!("{:.1} MiB", bytes as f64 / 1_048_576.0),
    }
}

/// A table cell with a number. A zero is shown less prominently.
pub(super) fn number_cell(value: u64, class: &str) -> Markup {
    let class = if value == 0 { "zero" } else { class };
    html! { td.num.(class) { (number(value)) } }
}

/// A button that leads to the confirmation of a change. Empty in a read-only dashboard.
pub(super) fn button(cx: &Context, text: &str, parameters: &[(&str, &str)]) -> Markup {
    if cx.config.is_read_only {
        return html! {};
    }
    let is_destructive = parameters.iter().any(|(name, value)| {
        matches!(
            (*name, *value),
            (
                "do",
                "purge" | "purge-waiting" | "cancel" | "cancel-all" | "schedule-remove"
            ) | ("order", "drain")
        )
    });
    html! {
        a.button.danger[is_destructive] href=(cx.link("/confirm", parameters.iter().copied())) { (text) }
    }
}

/// The hidden fields of a form.
pub(super) fn hidden_fields<'a>(
    parameters: impl IntoIterator<Item = (&'a str, &'a str)>,
) -> Markup {
    html! {
        @for (name, value) in parameters {
            input type="hidden" name=(name) value=(value);
        }
    }
}

/// The hidden field with the token against forged requests.
pub(super) fn token_field(cx: &Context) -> Markup {
    hidden_fields([(forgery::TOKEN_FIELD, cx.token.text.as_str())])
}

/// A table, with a separate scroll bar if it is wider than the screen. A `#` before a column's
/// title makes it a column of numbers.
pub(super) fn table(caption: &str, head: &[&str], rows: &Markup) -> Markup {
    html! {
        div.wide tabindex="0" role="region" aria-label=(caption) {
            table {
                caption { (caption) }
                thead { tr { @for column in head {
                    @let is_number = column.starts_with('#');
                    th.num[is_number] scope="col" { (column.trim_start_matches('#')) }
                } } }
                tbody { (rows) }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_sizes_times_and_durations_are_readable() {
        assert_eq!(number(1_234_567), "1\u{202f}234\u{202f}567");
        assert_eq!(
            (number(7), number(1_000)),
            ("7".into(), "1\u{202f}000".into())
        );
        assert_eq!(size(5 << 20), "5.0 MiB");
        assert_eq!(duration(Duration::from_secs(3_725)), "1 h 2 min");
        assert_eq!(duration(Duration::from_millis(12)), "12 ms");
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1_795_430_237);
        assert_eq!(timestamp(time), "2026-11-23T10:37:17Z");
    }
}
