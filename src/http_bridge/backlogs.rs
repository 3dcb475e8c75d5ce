//! Serves the backlogs of streams over HTTP, for programs that scale workers and for Prometheus.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    fmt,
    fmt::Write as _,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures_util::future::join_all;
use http::{
    HeaderValue, Method, Request, Response, StatusCode,
    header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE},
};
use percent_encoding::percent_decode_str;
use serde_json::json;
use tokio::time::timeout;
use tower::Service;

use super::{body::Body, problem::Problem};
use crate::{
    error::{Error, shown_chain},
    message::Name,
    transport::Backlog,
};

/// The maximum time to read a backlog.
const MAX_WAIT: Duration = Duration::from_secs(5);

/// A function that reads the backlog of one stream.
type ReadBacklog =
    dyn Fn() -> Pin<Box<dyn Future<Output = Result<Backlog, Error>> + Send>> + Send + Sync;

/// An HTTP service that responds with the [backlogs](Backlog) of streams: as JSON, for
/// [KEDA](https://keda.sh/docs/latest/scalers/metrics-api/) and other programs that scale workers,
/// or in the text format of
/// [Prometheus](https://prometheus.io/docs/instrumenting/exposition_formats/).
///
/// ```no_run
/// use campanile::{Redis, http_bridge::Backlogs};
///
/// # fn example(redis: Redis) {
/// let mails = redis.clone().stream("mails").group("mailers");
/// let backlogs = Backlogs::new()
///     .stream("orders", move || redis.backlog())
///     .stream("mails", move || mails.backlog());
/// let for_keda = backlogs.clone(); // GET /backlog?stream=orders
/// let for_prometheus = backlogs.prometheus(); // GET /metrics
/// # }
/// ```
///
/// `GET …?stream=orders` responds with the backlog of `orders`:
/// `{"stream":"orders","total":7,"waiting":3,…}`. Without a query the response has all backlogs,
/// `{"backlogs":[…]}`. A stream that was not added gets a 404. If one of the requested backlogs
/// cannot be read within 5 s, the response is a 503. In the Prometheus format the response is still
/// a 200: a stream whose backlog cannot be read has only the metric `campanile_backlog_up`, which
/// is 0. Methods other than `GET` and `HEAD` get 405.
///
/// Each request reads the backlogs from the server. Do not make this service public: mount it where
/// your probes and metrics are.
#[derive(Clone, Default)]
pub struct Backlogs {
    streams: BTreeMap<Name, Arc<ReadBacklog>>,
    is_prometheus: bool,
}

impl Backlogs {
    /// Creates a service without streams.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a stream under a name, and replaces an earlier stream of the same name. `read` returns
    /// the stream's backlog, usually by the `backlog` method of a handle.
    #[must_use]
    pub fn stream<R, F>(mut self, name: impl Into<Name>, read: R) -> Self
    where
        R: Fn() -> F + Send + Sync + 'static,
        F: Future<Output = Result<Backlog, Error>> + Send + 'static,
    {
        let read = move || -> Pin<Box<dyn Future<Output = _> + Send>> { Box::pin(read()) };
        self.streams.insert(name.into(), Arc::new(read));
        self
    }

    /// Responds in the text format of Prometheus, with the metrics of all streams:
    ///
    /// | metric | type | labels |
    /// |---|---|---|
    /// | `campanile_backlog_messages` | gauge | `stream`, and `state`: `waiting`, `unclaimed`, `running`, `retrying`, `delayed`, `parked` |
    /// | `campanile_backlog_due_soon` | gauge | `stream` |
    /// | `campanile_backlog_total` | gauge, of [`Backlog::total`] | `stream` |
    /// | `campanile_backlog_oldest_waiting_seconds` | gauge, 0 if nothing waits | `stream` |
    /// | `campanile_backlog_workers` | gauge | `stream` |
    /// | `campanile_backlog_up` | gauge, 1 if the backlog was read | `stream` |
    #[must_use]
    pub fn prometheus(self) -> Self {
        Self {
            is_prometheus: true,
            ..self
        }
    }

    /// Reads the backlogs of these streams, all at the same time. Returns `None` for a stream that
    /// cannot be read.
    async fn read_all<'a>(
        streams: impl Iterator<Item = (&'a Name, &'a Arc<ReadBacklog>)>,
    ) -> Vec<(&'a Name, Option<Backlog>)> {
        join_all(streams.map(async |(name, read)| {
            let backlog = match timeout(MAX_WAIT, read()).await {
                Ok(Ok(backlog)) => Some(backlog),
                Ok(Err(error)) => {
                    let error = shown_chain(&error);
                    tracing::warn!(stream = %name, error, "a backlog cannot be read");
                    None
                }
                Err(_) => {
                    tracing::warn!(stream = %name, "a backlog was not read within {MAX_WAIT:?}");
                    None
                }
            };
            (name, backlog)
        }))
        .await
    }

    /// Reads the backlogs that the query asks for, and returns the response.
    async fn answer(self, query: Option<String>) -> Response<Body> {
        if self.is_prometheus {
            return ok_response(
                "text/plain; version=0.0.4",
                prometheus_text(&Self::read_all(self.streams.iter()).await),
            );
        }
        let stream_name = query.as_deref().and_then(|query| {
            let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
            pairs.find_map(|(key, value)| (key == "stream").then(|| decode_query_value(value)))
        });
        let Some(stream_name) = stream_name else {
            // Without a `stream` in the query, the response has all backlogs, or is a 503.
            let found = Self::read_all(self.streams.iter()).await;
            let backlogs: Option<Vec<_>> = found.iter().map(backlog_json).collect();
            return match backlogs {
                Some(backlogs) => ok_response(
                    "application/json",
                    json!({ "backlogs": backlogs }).to_string(),
                ),
                None => unavailable_response(),
            };
        };
        let matching = self
            .streams
            .iter()
            .filter(|(name, _)| ***name == *stream_name);
        let found = Self::read_all(matching).await;
        match found.first() {
            None => {
                let text = "there is no backlog of a stream with this name";
                Problem::new(StatusCode::NOT_FOUND, "not_found", text).into_response()
            }
            Some(backlog) => match backlog_json(backlog) {
                Some(json) => ok_response("application/json", json.to_string()),
                None => unavailable_response(),
            },
        }
    }
}

/// Decodes a value in a query string.
fn decode_query_value(value: &str) -> String {
    let spaced = value.replace('+', " ");
    percent_decode_str(&spaced).decode_utf8_lossy().into_owned()
}

fn backlog_json((name, backlog): &(&Name, Option<Backlog>)) -> Option<serde_json::Value> {
    let backlog = backlog.as_ref()?;
    Some(json!({
        "stream": name.as_str(),
        "total": backlog.total(),
        "waiting": backlog.waiting,
        "unclaimed": backlog.unclaimed,
        "running": backlog.running,
        "retrying": backlog.retrying,
        "delayed": backlog.delayed,
        "due_soon": backlog.due_soon,
        "parked": backlog.parked,
        "oldest_waiting_seconds": oldest_waiting_seconds(backlog),
        "workers": backlog.workers,
    }))
}

fn oldest_waiting_seconds(backlog: &Backlog) -> f64 {
    backlog.oldest_waiting.unwrap_or_default().as_secs_f64()
}

/// A metric: its name, its help text, and a function that returns its samples for a backlog. A
/// sample is a pair: its labels after the label `stream`, such as `,state="waiting"`, and its
/// value.
type Metric = (
    &'static str,
    &'static str,
    fn(&Backlog) -> Vec<(&'static str, f64)>,
);

const METRICS: [Metric; 5] = [
    (
        "campanile_backlog_messages",
        "Messages of the stream by what they wait for.",
        |backlog| {
            vec![
                (",state=\"waiting\"", backlog.waiting as f64),
                (",state=\"unclaimed\"", backlog.unclaimed as f64),
                (",state=\"running\"", backlog.running as f64),
                (",state=\"retrying\"", backlog.retrying as f64),
                (",state=\"delayed\"", backlog.delayed as f64),
                (",state=\"parked\"", backlog.parked as f64),
            ]
        },
    ),
    (
        "campanile_backlog_due_soon",
        "Delayed and retrying messages that are due within the horizon.",
        |backlog| vec![("", backlog.due_soon as f64)],
    ),
    (
        "campanile_backlog_total",
        "Messages that need workers now or soon.",
        |backlog| vec![("", backlog.total() as f64)],
    ),
    (
        "campanile_backlog_oldest_waiting_seconds",
        "Time for which the oldest message has waited.",
        |backlog| vec![("", oldest_waiting_seconds(backlog))],
    ),
    (
        "campanile_backlog_workers",
        "Live workers of the group.",
        |backlog| vec![("", backlog.workers as f64)],
    ),
];

/// Writes the backlogs in the text format of Prometheus, version 0.0.4.
fn prometheus_text(found: &[(&Name, Option<Backlog>)]) -> String {
    let mut text = String::new();
    let mut write_metric = |name: &str, help: &str, samples: Vec<(String, f64)>| {
        if !samples.is_empty() {
            let _ = write!(text, "# HELP {name} {help}\n# TYPE {name} gauge\n");
        }
        for (labels, value) in samples {
            let _ = writeln!(text, "{name}{{{labels}}} {value}");
        }
    };
    for (name, help, samples_of) in METRICS {
        // Leaves out the streams whose backlogs cannot be read.
        let readable = found.iter().filter_map(|(stream, backlog)| {
            let stream = escape_label(stream);
            Some((backlog.as_ref()?, stream))
        });
        let samples = readable.flat_map(|(backlog, stream)| {
            let samples = samples_of(backlog).into_iter();
            samples.map(move |(more, value)| (format!("stream=\"{stream}\"{more}"), value))
        });
        write_metric(name, help, samples.collect());
    }
    let up = found.iter().map(|(stream, backlog)| {
        let is_up = f64::from(u8::from(backlog.is_some()));
        (format!("stream=\"{}\"", escape_label(stream)), is_up)
    });
    let help = "1 if the backlog was read.";
    write_metric("campanile_backlog_up", help, up.collect());
    text
}

/// Escapes the value of a label.
fn escape_label(value: &str) -> String {
    value
        .replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

fn ok_response(content_type: &'static str, body: String) -> Response<Body> {
    let mut response = Response::new(Body::from(body));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

fn unavailable_response() -> Response<Body> {
    let text = "the backlog cannot be read now; the log has the reason";
    Problem::new(StatusCode::SERVICE_UNAVAILABLE, "unread", text).into_response()
}

impl<B> Service<Request<B>> for Backlogs {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BacklogsFuture;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> BacklogsFuture {
        let query = request.uri().query().map(str::to_owned);
        let method = request.method().clone();
        let this = self.clone();
        BacklogsFuture(Box::pin(async move {
            match method {
                Method::GET => this.answer(query).await,
                Method::HEAD => this.answer(query).await.map(|_| Body::default()),
                _ => {
                    let status = StatusCode::METHOD_NOT_ALLOWED;
                    let problem = Problem::new(status, "method_not_allowed", "a backlog is a GET");
                    let mut response = problem.into_response();
                    let allow = HeaderValue::from_static("GET, HEAD");
                    response.headers_mut().insert(ALLOW, allow);
                    response
                }
            }
        }))
    }
}

/// The future of [`Backlogs`].
#[must_use = "futures do nothing unless polled"]
pub struct BacklogsFuture(Pin<Box<dyn Future<Output = Response<Body>> + Send>>);

impl Future for BacklogsFuture {
    type Output = Result<Response<Body>, Infallible>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.0.as_mut().poll(cx).map(Ok)
    }
}

impl fmt::Debug for BacklogsFuture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BacklogsFuture").finish_non_exhaustive()
    }
}

impl fmt::Debug for Backlogs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.streams.keys()).finish()
    }
}
