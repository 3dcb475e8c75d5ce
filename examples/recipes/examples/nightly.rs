//! A nightly job in a time zone. It is sent once, even if several processes run the schedule.
//!
//! ```text
//! REDIS_URL=redis://127.0.0.1/ cargo run -p example-recipes --example nightly
//! ```

use std::{env, time::Duration};

use campanile::{
    BoxError, Json, Redis, Router,
    schedule::{Missed, Schedule, ScheduledTask},
    serve,
};
use tokio::sync::mpsc;

fn schedule() -> ScheduledTask {
    let at_three = Schedule::cron("0 3 * * *")
        .in_zone("Europe/Berlin")
        .jitter(Duration::from_secs(300)) // not all reports of all services at 3:00:00
        .missed(Missed::Once); // one report after any number of missed nights
    ScheduledTask::new("nightly report", at_three, "reports.make", Json("all")).skip_while_running()
}

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let url = env::var("REDIS_URL").unwrap_or_else(|_| "redis://127.0.0.1/".into());
    let redis = Redis::connect(&url).await?.stream("reports");
    let schedules = redis.schedules();
    schedules.put(&schedule()).await?;
    let name = "nightly report".into();
    let stored = schedules
        .get(&name)
        .await?
        .ok_or("the schedule was removed")?;
    println!("the next {} nights are planned", stored.next_ticks(3).len());

    let (made, mut reports) = mpsc::unbounded_channel();
    let app = Router::new().task("reports.make", async move |Json(which): Json<String>| {
        drop(made.send(which));
    });
    // In a service, the worker and the schedule run until a signal. This example ends after the
    // first report.
    let worker = serve(redis, app).with_graceful_shutdown(async move {
        let report = reports.recv().await;
        println!("made the report of {}", report.unwrap_or_default());
    });
    schedules.run_now(&name).await?;
    tokio::select! {
        ended = schedules.run([schedule()]) => match ended? {},
        ended = worker => ended?,
    }
    schedules.remove(&name).await?;
    Ok(())
}
