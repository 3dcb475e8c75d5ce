//! Tests without a server and without waiting for retries and delays.
//!
//! ```text
//! cargo run -p example-recipes --example test_kit
//! cargo test -p example-recipes --example test_kit
//! ```

use std::time::Duration;

use campanile::{Attempt, BoxError, Client, Outbox, Router};

async fn welcome(attempt: Attempt, outbox: Outbox, user: String) -> Result<(), BoxError> {
    if !attempt.is_retry() {
        return Err("the mail server is busy".into());
    }
    let week = Duration::from_secs(7 * 24 * 3600);
    outbox.enqueue("mails.remind", user).delay(week).await?;
    Ok(())
}

fn app() -> Router {
    Router::new()
        .task("mails.welcome", welcome)
        .task("mails.remind", async |user: String| {
            println!("{user}, how do you like it?")
        })
        .rpc("mails.count", async || "2")
}

/// A router is a service: a client can call it directly.
#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), BoxError> {
    let count: String = Client::new(app()).request("mails.count", ()).await?;
    println!("{count} mails");
    Ok(())
}

#[cfg(test)]
mod tests {
    use campanile::testing::{Harness, task};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_new_user_is_welcomed_and_reminded_a_week_later() {
        let mut mails = Harness::new();
        mails.serve(app()).await;
        let client = mails.client();
        client.enqueue("mails.welcome", "Ann").await.unwrap();
        mails.settled().await;
        mails.assert_acknowledged(task("mails.welcome").never()); // its first attempt has failed
        mails.advance_to_next().await.expect("it is tried again");
        mails.settled().await;
        mails.assert_acknowledged(task("mails.welcome").once());
        let week = mails.advance_to_next().await.expect("a reminder");
        assert!(week > Duration::from_secs(6 * 24 * 3600));
        mails.settled().await;
        mails.assert_acknowledged(task("mails.remind").payload("Ann").once());
    }
}
