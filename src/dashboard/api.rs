//! The JSON API: the content of the pages as JSON documents. `docs/dashboard.md` describes the API.

use std::time::SystemTime;

use base64::{Engine, prelude::BASE64_STANDARD};
use http::{HeaderMap, HeaderValue, Response, StatusCode, header::CONTENT_TYPE};
use serde_json::{Map, Value, json};

use super::{
    DashboardBody,
    actions::{self, StartedAction},
    change::{Change, target_text},
    context::Context,
    fault::Fault,
    form::FormFields,
    history::Hour,
    layout::timestamp,
    pages,
    sampler::Sample,
};
use crate::{
    message::{DeadLetterId, Message, MessageId},
    transport::{GroupStats, MessageQuery, MessageState, StreamStats, TaskStatus, Undecodable},
};

/// The maximum length of a payload in a document, in bytes.
const MAX_PAYLOAD: usize = 64 << 10;

fn response(
    status: StatusCode,
    content_type: &'static str,
    document: &Value,
) -> Response<DashboardBody> {
    let mut response = Response::new(DashboardBody::from(document.to_string()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

/// Returns the problem document of an error (RFC 9457).
pub(super) fn problem(fault: &Fault) -> Response<DashboardBody> {
    let status = fault.status.as_u16();
    let document = json!({ "title": fault.title, "status": status, "detail": fault.text });
    response(fault.status, "application/problem+json", &document)
}

/// Responds to a `GET` with the document of this name.
pub(super) async fn get(cx: &Context, name: &str) -> Result<Response<DashboardBody>, Fault> {
    let document = match name {
        "overview" => overview(cx),
        "streams" => streams(cx).await?,
        "stream" => stats_document(&cx.stream()?.1.stats().await?),
        "consumers" => consumers(cx).await?,
        "history" => history(cx).await?,
        "workers" => workers(cx).await?,
        "descriptions" => descriptions(cx).await?,
        #[cfg(feature = "schema")]
        "asyncapi" => asyncapi(cx).await?,
        "messages" => messages(cx).await?,
        "parked" => parked(cx).await?,
        "dead" => dead(cx).await?,
        "letter" => letter(cx).await?,
        "tasks" => tasks(cx).await?,
        "task" => task(cx).await?,
        "schedules" => schedules(cx).await?,
        "pauses" => pauses(cx).await?,
        "actions" => {
            let actions = cx.state.actions.list();
            let actions: Vec<_> = actions.iter().map(|it| action_document(it)).collect();
            json!({ "actions": actions })
        }
        "action" => action_document(&*cx.state.actions.get(cx.form.need("id")?)?),
        _ => return Err(Fault::not_found("the API has no such document")),
    };
    Ok(response(StatusCode::OK, "application/json", &document))
}

/// Responds to a `POST`: starts the change that `body` describes, or stops an action.
pub(super) async fn post(
    cx: &mut Context,
    command: &str,
    body: &[u8],
) -> Result<Response<DashboardBody>, Fault> {
    let body: Map<String, Value> = serde_json::from_slice(body)
        .map_err(|error| Fault::bad_request(format!("the body is no JSON object: {error}")))?;
    cx.form = form_of(body)?;
    let running = match command {
        "act" => {
            cx.may_change()?;
            let change = Change::of(&cx.form)?;
            actions::begin(&cx.config, &cx.state, &cx.user, change).await?
        }
        "stop" => {
            let id = pages::stop(cx)?;
            cx.state.actions.get(&id)?
        }
        _ => return Err(Fault::not_found("the API has no such action")),
    };
    let status = match running.progress().outcome {
        Some(_) => StatusCode::OK,
        None => StatusCode::ACCEPTED,
    };
    Ok(response(
        status,
        "application/json",
        &action_document(&running),
    ))
}

/// Converts a JSON object into the parameters that a form would have. A value is a text, a number,
/// a boolean, or a list of these. `false` and `null` are left out.
fn form_of(body: Map<String, Value>) -> Result<FormFields, Fault> {
    let mut pairs = Vec::new();
    for (name, value) in body {
        let values = match value {
            Value::Array(values) => values,
            value => vec![value],
        };
        for value in values {
            let text = match value {
                Value::String(text) => text,
                Value::Number(number) => number.to_string(),
                Value::Bool(true) => "1".to_owned(),
                Value::Bool(false) | Value::Null => continue,
                _ => {
                    return Err(Fault::bad_request(format!(
                        "the value of `{name}` is no text"
                    )));
                }
            };
            pairs.push((name.clone(), text));
        }
    }
    Ok(FormFields::of(pairs))
}

fn overview(cx: &Context) -> Value {
    let totals = cx.state.samples.totals();
    json!({
        "streams": totals.streams,
        "waiting": totals.waiting,
        "groups_with_unknown_waiting": totals.uncounted_groups,
        "running": totals.running,
        "delayed": totals.delayed,
        "parked": totals.parked,
        "dead": totals.dead,
        "streams_without_sample": totals.unsampled_streams,
        "oldest_sample": totals.oldest_sample.map(timestamp),
        "connection": cx.config.handle.state().to_string(),
        "sampling_error": cx.state.samples.error(),
    })
}

async fn streams(cx: &Context) -> Result<Value, Fault> {
    let listed = pages::list_streams(cx).await?;
    let streams = listed
        .streams
        .iter()
        .map(|(name, sample)| sample_document(name, sample.as_ref()));
    Ok(json!({
        "streams": streams.collect::<Vec<_>>(),
        "found": listed.found,
        "page": listed.page,
        "pages": listed.pages,
    }))
}

fn sample_document(name: &str, sample: Option<&Sample>) -> Value {
    match sample.and_then(|sample| sample.stats.as_ref().zip(Some(sample.at))) {
        Some((stats, at)) => {
            let mut document = stats_document(stats);
            document["sampled"] = timestamp(at).into();
            document
        }
        None => json!({ "stream": name, "sampled": null }),
    }
}

fn stats_document(stats: &StreamStats) -> Value {
    let group = |group: &GroupStats| {
        json!({
            "group": &*group.group,
            "waiting": group.lag,
            "running": group.pending,
            "oldest_running_ms": group.oldest_pending.map(|oldest| oldest.as_millis() as u64),
            "delayed": group.delayed,
            "parked": group.parked,
            "dead": group.dead,
            "workers": group.consumers,
            "last_delivered": group.last_delivered,
        })
    };
    json!({
        "stream": &*stats.stream,
        "entries": stats.entries,
        "delayed": stats.delayed,
        "groups": stats.groups.iter().map(group).collect::<Vec<_>>(),
    })
}

async fn consumers(cx: &Context) -> Result<Value, Fault> {
    let scope = cx.scope().await?;
    let consumers = scope.handle.consumers().await?.unwrap_or_default();
    let consumers = consumers.iter().take(1_000).map(|consumer| {
        json!({
            "consumer": consumer.consumer,
            "running": consumer.pending,
            "idle_ms": consumer.idle.as_millis() as u64,
            "foreign": consumer.foreign,
        })
    });
    Ok(json!({ "consumers": consumers.collect::<Vec<_>>() }))
}

async fn history(cx: &Context) -> Result<Value, Fault> {
    let hour = match cx.form.get("stream") {
        Some(_) => Hour::of(&cx.scope().await?.handle.history().await?),
        None => cx.state.samples.hour(),
    };
    Ok(json!({ "minutes": hour.document() }))
}

async fn descriptions(cx: &Context) -> Result<Value, Fault> {
    let found = cx.scope().await?.handle.workers().describe().await?;
    let described = found.answers.into_iter().map(|it| {
        let json = it.description.as_deref();
        let description: Option<Value> = json.and_then(|json| serde_json::from_str(json).ok());
        json!({
            "worker": it.worker,
            "service": it.service,
            "version": it.version,
            "description": description,
        })
    });
    let described: Vec<_> = described.collect();
    Ok(json!({ "workers": described, "silent": found.silent }))
}

/// Returns the AsyncAPI document of the workers, if all workers have the same description.
#[cfg(feature = "schema")]
async fn asyncapi(cx: &Context) -> Result<Value, Fault> {
    let found = cx.scope().await?.handle.workers().describe().await?;
    let document = found.asyncapi();
    document.map_err(|error| Fault::not_found(super::fault::chain(&error)))
}

async fn workers(cx: &Context) -> Result<Value, Fault> {
    let workers = cx.scope().await?.handle.workers();
    let listed = workers.list().await?;
    let stats = match cx.form.get("stats") {
        Some(_) => Some(workers.stats().await?),
        None => None,
    };
    Ok(json!({ "workers": listed, "stats": stats }))
}

/// Adds the beginning of a payload to a document: as text if it is UTF-8, otherwise in Base64.
fn add_payload(document: &mut Value, payload: &[u8]) {
    let shown = &payload[..payload.len().min(MAX_PAYLOAD)];
    document["payload_bytes"] = payload.len().into();
    document["payload_cut"] = (shown.len() < payload.len()).into();
    match std::str::from_utf8(shown) {
        Ok(text) => document["payload"] = text.into(),
        Err(_) => document["payload_base64"] = BASE64_STANDARD.encode(shown).into(),
    }
}

fn headers_document(headers: &HeaderMap) -> Value {
    let headers = headers
        .iter()
        .map(|(name, value)| json!([name.as_str(), String::from_utf8_lossy(value.as_bytes())]));
    headers.collect()
}

/// Adds the fields of a message to a document, or the reason why it cannot be decoded.
fn add_content(document: &mut Value, content: &Result<Message, Undecodable>) {
    match content {
        Ok(message) => {
            document["kind"] = message.kind().as_str().into();
            document["name"] = message.name().as_str().into();
            document["headers"] = headers_document(message.headers());
            add_payload(document, message.payload());
        }
        Err(undecodable) => document["undecodable"] = undecodable.reason.as_str().into(),
    }
}

async fn messages(cx: &Context) -> Result<Value, Fault> {
    let scope = cx.scope().await?;
    let state = match cx.form.need("state")? {
        "waiting" => MessageState::Waiting,
        "running" => MessageState::Running,
        "delayed" => MessageState::Delayed,
        _ => {
            return Err(Fault::bad_request(
                "`state` is `waiting`, `running` or `delayed`",
            ));
        }
    };
    let mut query = MessageQuery::of(state).max(cx.form.number("max")?.unwrap_or(50).min(100));
    query.after = cx.form.get("after").map(str::to_owned);
    let page = scope.handle.messages().list(query).await?;
    let messages = page.messages.iter().map(|message| {
        let mut document = json!({
            "id": &*message.id,
            "entry": message.entry,
            "on_stream": message.on_stream,
            "attempt": message.attempt.0,
            "consumer": message.consumer,
            "idle_ms": message.idle.map(|idle| idle.as_millis() as u64),
            "due": message.due.map(timestamp),
        });
        add_content(&mut document, &message.content);
        document
    });
    Ok(json!({ "messages": messages.collect::<Vec<_>>(), "next": page.next }))
}

async fn parked(cx: &Context) -> Result<Value, Fault> {
    let parked = cx.scope().await?.handle.messages().parked().await?;
    let keys = parked.iter().map(|key| {
        json!({
            "limit": key.limit,
            "name": key.name.as_deref(),
            "version": key.version,
            "parked": key.parked,
            "taken": key.taken,
            "permits": key.permits,
        })
    });
    Ok(json!({ "keys": keys.collect::<Vec<_>>() }))
}

async fn dead(cx: &Context) -> Result<Value, Fault> {
    let dead = cx.scope().await?.handle.dead_letters();
    let pages::FoundLetters {
        letters,
        next,
        examined,
    } = pages::find_letters(cx, &dead).await?;
    let letters = letters.iter().map(|letter| {
        json!({
            "id": &*letter.id,
            "message_id": &*letter.message_id,
            "name": letter.name,
            "reason": letter.reason,
            "attempts": letter.attempts,
            "died_at": timestamp(letter.died_at),
            "bytes": letter.bytes,
        })
    });
    let letters: Vec<_> = letters.collect();
    Ok(
        json!({ "letters": letters, "next": next.as_deref(), "looked_at": examined, "count": dead.count().await? }),
    )
}

async fn letter(cx: &Context) -> Result<Value, Fault> {
    let scope = cx.scope().await?;
    let id = DeadLetterId::from(cx.form.need("id")?);
    let letter = scope.handle.dead_letters().get(&id).await?;
    let letter = letter.ok_or_else(|| Fault::not_found("there is no such dead letter"))?;
    let mut document = json!({
        "id": &*letter.id,
        "message_id": &*letter.message_id,
        "reason": letter.reason,
        "attempts": letter.attempts,
        "died_at": timestamp(letter.died_at),
    });
    add_content(&mut document, &letter.message());
    Ok(document)
}

async fn tasks(cx: &Context) -> Result<Value, Fault> {
    let scope = cx.scope().await?;
    let page = scope.handle.tasks().list(pages::task_query(cx)?).await?;
    let next = page.next.and_then(|next| next.after);
    let tasks: Vec<_> = page.tasks.iter().map(status_document).collect();
    Ok(json!({ "tasks": tasks, "next": next }))
}

async fn task(cx: &Context) -> Result<Value, Fault> {
    let scope = cx.scope().await?;
    let id = MessageId::from(cx.form.need("id")?);
    let tasks = scope.handle.tasks();
    let found = tasks.status(&id).await?;
    let (changes, is_complete) = pages::task_history(&tasks, &id).await?;
    if found.is_none() && changes.is_empty() {
        return Err(Fault::not_found(
            "the task has no record and no change in the feed",
        ));
    }
    let changes = changes.iter().map(|change| {
        json!({
            "at": timestamp(change.at),
            "state": change.state.as_str(),
            "attempt": change.attempt.0,
            "reason": change.reason,
        })
    });
    let changes: Vec<_> = changes.collect();
    Ok(
        json!({ "record": found.as_ref().map(status_document), "changes": changes, "complete": is_complete }),
    )
}

fn status_document(status: &TaskStatus) -> Value {
    let json = |bytes: &bytes::Bytes| serde_json::from_slice::<Value>(bytes).ok();
    let result = status.result.as_ref();
    json!({
        "id": &*status.id,
        "name": &*status.name,
        "state": status.state.as_str(),
        "attempt": status.attempt.0,
        "reason": status.reason,
        "progress": status.progress.as_ref().and_then(json),
        "result": result.map(|result| json(result).unwrap_or_else(|| String::from_utf8_lossy(result).into())),
        "unique": status.unique.as_deref(),
        "accepted_at": timestamp(status.accepted_at),
        "started_at": status.started_at.map(timestamp),
        "ended_at": status.ended_at.map(timestamp),
    })
}

async fn schedules(cx: &Context) -> Result<Value, Fault> {
    let schedules = cx.stream()?.1.schedules().list().await?;
    let time = |at: SystemTime| Value::from(timestamp(at));
    let schedules = schedules.iter().map(|schedule| {
        let runs = schedule.runs.iter().map(|run| {
            json!({
                "at": timestamp(run.at),
                "task": &*run.task,
                "skipped": run.is_skipped,
                "manual": run.is_manual,
            })
        });
        let task = schedule.task.as_ref();
        json!({
            "name": &*schedule.name,
            "group": &*schedule.group,
            "times": task.map(|task| task.schedule().to_string()).ok(),
            "task": task.map(|task| task.task_name().to_owned()).ok(),
            "error": task.err(),
            "paused": schedule.paused,
            "next": schedule.next_ticks(3).into_iter().map(time).collect::<Vec<_>>(),
            "runs": runs.collect::<Vec<_>>(),
        })
    });
    Ok(json!({ "schedules": schedules.collect::<Vec<_>>() }))
}

async fn pauses(cx: &Context) -> Result<Value, Fault> {
    let pauses = cx.scope().await?.handle.control().pauses().await?;
    let pauses = pauses.iter().map(|pause| {
        json!({
            "paused": target_text(&pause.target),
            "reason": pause.reason,
            "since": timestamp(pause.since),
        })
    });
    Ok(json!({ "pauses": pauses.collect::<Vec<_>>() }))
}

fn action_document(action: &StartedAction) -> Value {
    let progress = action.progress();
    let outcome = progress.outcome.as_ref();
    json!({
        "id": action.id,
        "do": action.change.verb(),
        "title": action.change.title(),
        "stream": &*action.change.stream,
        "group": action.change.group.as_deref(),
        "user": action.user,
        "begun": timestamp(action.started_at),
        "state": outcome.map_or("running", |outcome| outcome.as_str()),
        "text": outcome.map(|outcome| outcome.text()),
        "done": progress.done,
        "of": progress.total,
    })
}
