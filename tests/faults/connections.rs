//! Connections that are killed one after the other, again and again.

use std::time::Instant;

use tokio::time::sleep;

use crate::{
    RECONNECT, SECOND,
    ledger::{What, now},
    scaled,
    scene::Scene,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_storm_of_killed_connections_loses_nothing_and_repeats_nothing() {
    let mut scene = Scene::new().await;
    scene.setup.lease = 10 * SECOND;
    let workers = scene.workers(2).await;
    let started = Instant::now();
    let storm = async {
        let mut killed = 0;
        let mut connection = scene.server.connection().await;
        let mine: u64 = ask(&mut connection, &["CLIENT", "ID"]).await;
        let mut last = 0;
        while started.elapsed() < scaled(4, 30) * SECOND {
            let clients: String = ask(&mut connection, &["CLIENT", "LIST"]).await;
            let ids = clients.lines().filter_map(|line| {
                line.split(' ')
                    .find_map(|word| word.strip_prefix("id=")?.parse::<u64>().ok())
            });
            let others: Vec<_> = ids.filter(|id| *id != mine).collect();
            // Takes the connections in turn by age, then the oldest one again.
            let next = others.iter().find(|id| **id > last).or(others.first());
            let Some(next) = next else { break };
            last = *next;
            let kill = ["CLIENT", "KILL", "ID", &next.to_string()];
            // The connection may have closed by itself.
            killed += ask::<u64>(&mut connection, &kill).await;
            sleep(SECOND / 50).await;
        }
        killed
    };
    let load = async {
        let mut next = 0;
        let mut failed = 0;
        while started.elapsed() < scaled(4, 30) * SECOND {
            let errors = scene.send("work", next..next + 50, 5).await;
            assert!(
                errors
                    .iter()
                    .all(|e| e.is_unknown_outcome() || e.is_disconnected())
            );
            failed += errors.len();
            next += 50;
            sleep(SECOND / 50).await;
        }
        (next, failed)
    };
    let (killed, (tried, failed)) = tokio::join!(storm, load);
    let at = now();
    scene.send_all("work", tried..tried + 100, 5).await;
    let account = scene.all_done(60 * SECOND).await;
    let fault = format!("{killed} killed connections ({failed} sends of {tried} failed)");
    account.report(&fault, account.went_on(at), RECONNECT);
    assert!(killed > 20, "{killed}");
    assert!(account.repeated().is_empty(), "{:?}", account.repeated());
    assert!(account.jobs(What::Sent).len() > 100, "some jobs were sent");
    for worker in workers {
        worker.terminate().await;
    }
}

async fn ask<T: redis::FromRedisValue>(
    connection: &mut redis::aio::MultiplexedConnection,
    words: &[&str],
) -> T {
    let mut command = redis::cmd(words[0]);
    command.arg(&words[1..]);
    command.query_async(connection).await.expect("an answer")
}
