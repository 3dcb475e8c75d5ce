//! Shows and searches the dead letters of a group.

use std::time::{Duration, SystemTime};

use maud::{Markup, html};

use super::super::{
    context::{Context, Scope},
    fault::Fault,
    layout::{DashboardPage, age, button, hidden_fields, number, size, table},
    preview,
};
use crate::{
    message::{DeadLetterId, MessageId},
    transport::{self, DeadLetter, DeadLetters},
};

/// The number of letters on a page, unless the request has the parameter `max`.
const LETTERS_PER_PAGE: usize = 50;
/// The maximum number of letters that one request examines.
const MAX_EXAMINED: usize = 2_000;
/// The time after which a search ends, and shows the letters that it has found until then.
const MAX_SEARCH_TIME: Duration = Duration::from_secs(3);
/// The number of letters that the search reads at once.
const LETTERS_PER_STEP: usize = 100;

/// The fields of a dead letter that are shown in lists.
pub(in crate::dashboard) struct ListedLetter {
    pub(in crate::dashboard) id: DeadLetterId,
    pub(in crate::dashboard) message_id: MessageId,
    /// The name of the message. `None` if the name is missing or not UTF-8.
    pub(in crate::dashboard) name: Option<String>,
    pub(in crate::dashboard) reason: String,
    pub(in crate::dashboard) attempts: u32,
    pub(in crate::dashboard) died_at: SystemTime,
    /// The size of the letter's fields, in bytes.
    pub(in crate::dashboard) bytes: usize,
}

impl ListedLetter {
    fn new(letter: DeadLetter) -> Self {
        let sizes = letter.fields.iter();
        let sizes = sizes.map(|(field, value)| field.len() + value.len());
        let name = letter.fields.iter().find(|(field, _)| field == "name");
        let name = name.and_then(|(_, name)| String::from_utf8(name.to_vec()).ok());
        Self {
            bytes: sizes.sum(),
            id: letter.id,
            message_id: letter.message_id,
            name,
            reason: letter.reason,
            attempts: letter.attempts,
            died_at: letter.died_at,
        }
    }
}

/// The outcome of a search.
pub(in crate::dashboard) struct FoundLetters {
    pub(in crate::dashboard) letters: Vec<ListedLetter>,
    /// The letter after which the next request continues the search. `None` if no letter is left.
    pub(in crate::dashboard) next: Option<DeadLetterId>,
    /// The number of letters that the search has examined.
    pub(in crate::dashboard) examined: usize,
}

/// The search terms of a request. An empty term selects all letters.
struct Search<'a> {
    name: &'a str,
    reason: &'a str,
    id: &'a str,
}

impl Search<'_> {
    fn selects(&self, letter: &ListedLetter) -> bool {
        let name = letter.name.as_deref().unwrap_or_default();
        let is_id = self.id.is_empty() || letter.id == self.id || letter.message_id == self.id;
        is_id && name.contains(self.name) && letter.reason.contains(self.reason)
    }
}

/// Parses the maximum age of the letters in a search.
fn parse_max_age(text: &str) -> Option<Duration> {
    match text {
        "10m" => Some(Duration::from_secs(600)),
        "1h" => Some(Duration::from_secs(3_600)),
        "1d" => Some(Duration::from_secs(86_400)),
        _ => None,
    }
}

/// Returns the id after which the search of the request starts. `None` if it starts at the oldest
/// letter.
fn start_of_search(cx: &Context) -> Result<Option<String>, Fault> {
    Ok(match (cx.form.get("after"), cx.form.get("since")) {
        (Some(after), _) => Some(after.to_owned()),
        (None, Some("all") | None) => None,
        (None, Some(age)) => {
            let age = parse_max_age(age)
                .ok_or_else(|| Fault::bad_request("`since` is `10m`, `1h`, `1d` or `all`"))?;
            let from = SystemTime::now().checked_sub(age);
            let from = from.and_then(|from| from.duration_since(SystemTime::UNIX_EPOCH).ok());
            // The id of a letter begins with a time in milliseconds.
            from.map(|from| format!("{}-0", from.as_millis()))
        }
    })
}

/// Searches the letters for the terms of the request. Examines at most [`MAX_EXAMINED`] letters,
/// for about [`MAX_SEARCH_TIME`].
pub(in crate::dashboard) async fn find_letters(
    cx: &Context,
    dead: &DeadLetters,
) -> Result<FoundLetters, Fault> {
    let text = |name| cx.form.get(name).unwrap_or_default().trim();
    let search = Search {
        name: text("name"),
        reason: text("reason"),
        id: text("id"),
    };
    let max = cx
        .form
        .number("max")?
        .unwrap_or(LETTERS_PER_PAGE)
        .clamp(1, LETTERS_PER_STEP);
    let start = start_of_search(cx)?;
    let started = tokio::time::Instant::now();
    let mut found = FoundLetters {
        letters: Vec::new(),
        next: start.map(DeadLetterId::from),
        examined: 0,
    };
    loop {
        // Reads some letters, and keeps those that match, until the page is full.
        let mut page = transport::Page::first(LETTERS_PER_STEP.min(MAX_EXAMINED - found.examined));
        page.after = found.next.take();
        let read = dead.list(page).await?;
        let mut is_full = false;
        for letter in read.letters {
            let id = letter.id.clone();
            found.examined += 1;
            let letter = ListedLetter::new(letter);
            if search.selects(&letter) {
                found.letters.push(letter);
            }
            found.next = Some(id);
            if found.letters.len() >= max {
                is_full = true;
                break;
            }
        }
        let last_read = read.next.and_then(|next| next.after);
        if is_full {
            // The next page starts after the last letter of this page. It may be empty, because no
            // further letter may match.
            return Ok(found);
        }
        if last_read.is_none() {
            found.next = None;
            return Ok(found);
        }
        found.next = last_read;
        if found.examined >= MAX_EXAMINED || started.elapsed() >= MAX_SEARCH_TIME {
            return Ok(found);
        }
    }
}

pub(super) async fn page(cx: &Context) -> Result<DashboardPage, Fault> {
    let scope = cx.scope().await?;
    let dead = scope.handle.dead_letters();
    let (count, found) = (dead.count().await?, find_letters(cx, &dead).await?);
    let live_part = html! {
        p { strong.dead[count > 0] { (number(count)) } " dead letters in this group, the oldest first." }
    };
    let fixed_part = html! {
        (search_form(cx, &scope))
        (letters(cx, &scope, &found))
    };
    Ok(DashboardPage::new("Dead letters", live_part)
        .fixed_part(fixed_part)
        .in_scope(&scope))
}

fn search_form(cx: &Context, scope: &Scope) -> Markup {
    let since = cx.form.get("since").unwrap_or("all");
    let times = [
        ("all", "any time"),
        ("10m", "last 10 minutes"),
        ("1h", "last hour"),
        ("1d", "last day"),
    ];
    html! {
        form.filter method="get" action=(cx.link("/dead", [])) {
            (hidden_fields(scope.parameters()))
            label { "Name contains " input name="name" value=[cx.form.get("name")] autocomplete="off"; }
            label { "Reason contains " input name="reason" value=[cx.form.get("reason")] autocomplete="off"; }
            label { "Id " input name="id" value=[cx.form.get("id")] autocomplete="off"; }
            label { "Died " select name="since" {
                @for (value, text) in times { option value=(value) selected[value == since] { (text) } }
            } }
            button { "Search" }
        }
    }
}

fn letters(cx: &Context, scope: &Scope, found: &FoundLetters) -> Markup {
    let may_change = !cx.config.is_read_only;
    let rows = html! {
        @for letter in &found.letters {
            tr {
                @if may_change {
                    td { input type="checkbox" name="id" value=(letter.id) aria-label={ "Select " (preview::line(&letter.id)) }; }
                }
                th scope="row" {
                    a href=(cx.link("/letter", scope.parameters().into_iter().chain([("id", letter.id.as_str())]))) {
                        @match &letter.name { Some(name) => { (preview::excerpt(name, 60)) } None => { "(cannot be read)" } }
                    }
                }
                td.reason { (preview::excerpt(&letter.reason, 160)) }
                td.num { (number(letter.attempts.into())) }
                td { (age(letter.died_at)) }
                td.num { (size(letter.bytes)) }
            }
        }
    };
    let head = ["select", "name", "reason", "#attempts", "died", "#size"];
    let head = if may_change { &head[..] } else { &head[1..] };
    let next = found.next.as_deref();
    html! {
        @if found.letters.is_empty() {
            p { "No letter is found among the " (number(found.examined as u64)) " that were looked at." }
        } @else if may_change {
            form #letters method="get" action=(cx.link("/confirm", [])) {
                (hidden_fields(scope.parameters()))
                (table("Dead letters", head, &rows))
                p.buttons {
                    button name="do" value="replay" { "Replay selected…" }
                    button.danger name="do" value="purge" { "Delete selected…" }
                }
            }
        } @else {
            (table("Dead letters", head, &rows))
        }
        @if let Some(next) = next {
            p.pager {
                (number(found.examined as u64)) " letters were looked at. "
                a href=(cx.link_here(&[("after", next)])) { "Go on" }
            }
        }
        (bulk_buttons(cx, scope))
    }
}

/// The buttons that change many letters at once.
fn bulk_buttons(cx: &Context, scope: &Scope) -> Markup {
    if cx.config.is_read_only {
        return html! {};
    }
    let [stream, group] = scope.parameters();
    html! {
        section aria-labelledby="bulk" {
            h2 #bulk { "All at once" }
            p.buttons {
                (button(cx, "Replay all…", &[("do", "replay"), ("all", "1"), stream, group]))
                (button(cx, "Delete all…", &[("do", "purge"), ("all", "1"), stream, group]))
            }
            form.filter method="get" action=(cx.link("/confirm", [])) {
                (hidden_fields([stream, group]))
                label { "All with the name " input name="name" required autocomplete="off"; }
                button name="do" value="replay" { "Replay…" }
                button.danger name="do" value="purge" { "Delete…" }
            }
        }
    }
}
