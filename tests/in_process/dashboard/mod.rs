//! Tests of the dashboard over `Memory`, without a browser. Those with one are in `tests/dashboard`.

mod api;
mod changes;
mod pages;
mod rules;

use campanile::{
    Client, Error, Failure, Router,
    dashboard::{Dashboard, DashboardBody},
    serve,
    transport::memory::Memory,
};
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::BodyExt;
use serde_json::Value;
use tower::ServiceExt;

/// A response, with its whole body.
struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    text: String,
}

impl Answer {
    async fn of(response: Response<DashboardBody>) -> Self {
        let (parts, body) = response.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        Self {
            status: parts.status,
            headers: parts.headers,
            text: String::from_utf8(body.into()).unwrap(),
        }
    }

    #[track_caller]
    fn succeeded(self) -> Self {
        assert_eq!(self.status, StatusCode::OK, "{}", self.text);
        self
    }

    #[track_caller]
    fn has(self, texts: &[&str]) -> Self {
        for text in texts {
            assert!(self.text.contains(text), "{text:?} is not in {}", self.text);
        }
        self
    }

    #[track_caller]
    fn lacks(self, texts: &[&str]) -> Self {
        for text in texts {
            assert!(!self.text.contains(text), "{text:?} is in {}", self.text);
        }
        self
    }

    fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap()
    }
}

async fn send(dashboard: &Dashboard, request: Request<String>) -> Answer {
    let response = dashboard.clone().oneshot(request).await.unwrap();
    Answer::of(response).await
}

async fn get(dashboard: &Dashboard, target: &str) -> Answer {
    let request = Request::get(target).body(String::new()).unwrap();
    send(dashboard, request).await
}

const TOKEN: &str = "0123456789abcdef0123456789abcdef";

/// Sends a form as a browser does, with its token.
async fn post(dashboard: &Dashboard, target: &str, form: &str) -> Answer {
    let request = Request::post(target)
        .header("cookie", format!("campanile-dashboard={TOKEN}"))
        .header("content-type", "application/x-www-form-urlencoded")
        .header("sec-fetch-site", "same-origin");
    let request = request.body(format!("token={TOKEN}&{form}")).unwrap();
    send(dashboard, request).await
}

/// Makes a change, and returns the page of its outcome.
async fn act(dashboard: &Dashboard, form: &str) -> Answer {
    let answer = post(dashboard, "/act", form).await;
    assert_eq!(answer.status, StatusCode::SEE_OTHER, "{}", answer.text);
    let place = answer.headers["location"].to_str().unwrap().to_owned();
    get(dashboard, &place).await.succeeded()
}

/// Sends tasks that die at once. Returns the ids of their dead letters.
async fn make_letters(memory: &Memory, tasks: &[(&str, &str)]) -> Result<Vec<String>, Error> {
    let before = memory.dead_letters().count().await?;
    let mut app: Router = Router::new();
    let mut names: Vec<_> = tasks.iter().map(|(name, _)| *name).collect();
    names.sort_unstable();
    names.dedup();
    for name in names {
        let fails =
            async || Err::<(), _>(Failure::dead_letter().because("the printer is on <fire>"));
        app = app.task(name, fails);
    }
    let worker = tokio::spawn(serve(memory.clone(), app).into_future());
    for (name, payload) in tasks {
        Client::new(memory.clone()).enqueue(*name, *payload).await?;
    }
    while memory.dead_letters().count().await? < before + tasks.len() as u64 {
        tokio::task::yield_now().await;
    }
    worker.abort();
    let _ = worker.await;
    let letters = memory
        .dead_letters()
        .list(Default::default())
        .await?
        .letters;
    let ids = letters.into_iter().map(|letter| letter.id.to_string());
    Ok(ids.collect())
}

/// A stream with a group, so that its pages exist.
async fn with_group() -> Memory {
    let memory = Memory::new().stream("shop").group("mail");
    let app: Router = Router::new().task("x", async || {});
    let worker = tokio::spawn(serve(memory.clone(), app).into_future());
    while memory.groups().await.unwrap().is_none() {
        tokio::task::yield_now().await;
    }
    worker.abort();
    let _ = worker.await;
    memory
}

const SHOP: &str = "stream=shop&group=mail";
