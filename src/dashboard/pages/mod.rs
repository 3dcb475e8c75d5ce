//! The pages. Each module reads what its page shows, and renders it.

mod confirm;
mod dead;
mod letter;
mod limits;
mod messages;
mod overview;
mod pauses;
mod running;
mod schedules;
mod stream;
mod task;
mod tasks;
mod workers;

pub(super) use self::{
    dead::{FoundLetters, find_letters},
    overview::list_streams,
    task::task_history,
    tasks::query as task_query,
};
use super::{actions, change::Change, context::Context, fault::Fault, layout::DashboardPage};
use crate::transport::MessageState;

/// Returns `true` if the page at this path can have a live view.
pub(super) fn is_page(path: &str) -> bool {
    const PAGES: [&str; 14] = [
        "/",
        "/stream",
        "/waiting",
        "/running",
        "/delayed",
        "/dead",
        "/letter",
        "/tasks",
        "/task",
        "/workers",
        "/schedules",
        "/pauses",
        "/limits",
        "/actions",
    ];
    PAGES.contains(&path)
}

/// Makes the page at the path of the request.
pub(super) async fn get(cx: &Context) -> Result<DashboardPage, Fault> {
    match &*cx.path {
        "/" => overview::page(cx).await,
        "/stream" => stream::page(cx).await,
        "/waiting" => messages::page(cx, MessageState::Waiting).await,
        "/running" => messages::page(cx, MessageState::Running).await,
        "/delayed" => messages::page(cx, MessageState::Delayed).await,
        "/dead" => dead::page(cx).await,
        "/letter" => letter::page(cx).await,
        "/tasks" => tasks::page(cx).await,
        "/task" => task::page(cx).await,
        "/workers" => workers::page(cx).await,
        "/schedules" => schedules::page(cx).await,
        "/pauses" => pauses::page(cx).await,
        "/limits" => limits::page(cx).await,
        "/actions" => running::page(cx),
        "/confirm" => confirm::page(cx).await,
        _ => Err(Fault::not_found("there is no such page")),
    }
}

/// Starts the change of a form. Returns the id of its action.
pub(super) async fn act(cx: &Context) -> Result<String, Fault> {
    cx.may_change()?;
    let change = Change::of(&cx.form)?;
    let action = actions::begin(&cx.config, &cx.state, &cx.user, change).await?;
    Ok(action.id.clone())
}

/// Stops an action. Returns its id.
pub(super) fn stop(cx: &Context) -> Result<String, Fault> {
    cx.may_change()?;
    let action = cx.state.actions.get(cx.form.need("id")?)?;
    tracing::info!(
        target: "campanile::dashboard",
        user = super::preview::line(&cx.user),
        action = "stop",
        subject = action.change.title(),
        "an operator stops a change",
    );
    action.stop();
    Ok(action.id.clone())
}
