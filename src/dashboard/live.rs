//! Live pages: repeatedly sends the changing part of a page, as server-sent events.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::stream;
use http::{HeaderValue, Response, header::CONTENT_TYPE};
use tokio::time::Instant;

use super::{
    DashboardBody,
    context::{Context, LiveViewGuard},
    fault::Fault,
    form::FormFields,
    pages, sampler, service,
};

/// The maximum number of live views that are open at the same time.
const MAX_VIEWS: usize = 64;
/// The time between two events.
const EVENT_INTERVAL: Duration = Duration::from_secs(2);
/// The time after which a view ends. The browser then opens another view.
const LIFETIME: Duration = Duration::from_secs(600);

/// The state of a live view between two events.
struct LiveView {
    cx: Context,
    ends_at: Instant,
    is_first: bool,
    _guard: LiveViewGuard,
}

/// Opens the live view of a page. The parameter `of` is the page's path with its query.
pub(super) fn open(cx: &Context) -> Result<Response<DashboardBody>, Fault> {
    let page = cx.form.need("of")?;
    let (path, query) = page.split_once('?').unwrap_or((page, ""));
    // From here on, `cx` has the path and the parameters of the shown page.
    let mut cx = cx.clone();
    cx.form = FormFields::parse(query)?;
    cx.path = path.to_owned();
    if !pages::is_page(path) {
        return Err(Fault::not_found("there is no such page"));
    }
    let too_many = || Fault::too_many_requests(format!("{MAX_VIEWS} live views are open already"));
    let guard = cx.state.open_live_view(MAX_VIEWS).ok_or_else(too_many)?;
    let view = LiveView {
        cx,
        ends_at: Instant::now() + LIFETIME,
        is_first: true,
        _guard: guard,
    };
    let events = stream::unfold(view, |mut view| async {
        if !std::mem::take(&mut view.is_first) {
            tokio::time::sleep(EVENT_INTERVAL).await;
        }
        if Instant::now() >= view.ends_at {
            return None;
        }
        let event = next_event(&view.cx).await;
        Some((event, view))
    });
    let mut response = Response::new(DashboardBody::events(events));
    let content_type = HeaderValue::from_static("text/event-stream");
    response.headers_mut().insert(CONTENT_TYPE, content_type);
    // Asks nginx not to buffer the events.
    let no = HeaderValue::from_static("no");
    response.headers_mut().insert("x-accel-buffering", no);
    Ok(response)
}

/// Renders the page again. Returns the event with its changing part, or with the error.
async fn next_event(cx: &Context) -> Bytes {
    // An open view counts as a request, so the sampling continues.
    sampler::keep_sampling(&cx.config, &Arc::clone(&cx.state));
    let page = tokio::time::timeout(service::PAGE_TIMEOUT, pages::get(cx)).await;
    match page {
        Ok(Ok(page)) => {
            let html = page.live_part.into_string();
            format!(
                "event: part\ndata: {}\n\n",
                html.replace(['\r', '\n'], "\ndata: ")
            )
            .into()
        }
        Ok(Err(fault)) => fault_event(&fault),
        Err(_) => fault_event(&Fault::timeout(service::PAGE_TIMEOUT)),
    }
}

fn fault_event(fault: &Fault) -> Bytes {
    let text = format!("{}: {}", fault.title, super::preview::line(&fault.text));
    format!("event: fault\ndata: {text}\n\n").into()
}
