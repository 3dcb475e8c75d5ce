//! A worker and a client whose password is rotated while they are at work.
//!
//! ```text
//! REDIS_URL=redis://127.0.0.1/ cargo run --example credentials
//! ```
//!
//! The example creates the user `campanile-example` on the server, changes its password twice, and
//! deletes the user at the end. If the default user has no right to do this, set `ADMIN_URL` to a
//! URL with the login of a user who has it.
//!
//! A real application does not change its own password. A vault or a cloud provider does, and the
//! closure in `connect` asks the vault or the provider for the password.

use std::{
    env,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use campanile::{BoxError, Client, Redis, Router, State, serve, transport::redis::Credentials};
use redis::aio::MultiplexedConnection;
use tokio::{sync::oneshot, time::sleep};

const USER: &str = "campanile-example";
const STREAM: &str = "campanile-example";
/// The time after which a connection must renew its password. In a real application it is minutes
/// or hours.
const LIFETIME: Duration = Duration::from_secs(4);

/// The password, as a vault would keep it.
#[derive(Default)]
struct Vault {
    version: Mutex<u32>,
    ask_count: AtomicU64,
}

impl Vault {
    fn password(&self) -> String {
        let version = self.version.lock().unwrap_or_else(PoisonError::into_inner);
        format!("password-{version}")
    }

    async fn ask(&self) -> Result<Credentials, BoxError> {
        self.ask_count.fetch_add(1, Ordering::Relaxed);
        Ok(Credentials::new(USER, self.password()).expires_in(LIFETIME))
    }

    /// Changes to the next password, and returns the old one, which stays valid.
    async fn rotate(&self, admin: &mut MultiplexedConnection) -> Result<String, BoxError> {
        let old = self.password();
        let next = *self.version.lock().unwrap_or_else(PoisonError::into_inner) + 1;
        set_user(admin, &[&format!(">password-{next}")]).await?;
        *self.version.lock().unwrap_or_else(PoisonError::into_inner) = next;
        Ok(old)
    }
}

async fn set_user(admin: &mut MultiplexedConnection, rules: &[&str]) -> Result<(), BoxError> {
    let mut command = redis::cmd("ACL");
    command.arg("SETUSER").arg(USER).arg(rules);
    Ok(command.query_async(admin).await?)
}

async fn connect(url: &str, vault: &Arc<Vault>) -> Result<Redis, BoxError> {
    let vault = vault.clone();
    let provider = move || {
        let vault = vault.clone();
        async move { vault.ask().await }
    };
    let redis = Redis::builder(url).credentials(provider).connect().await?;
    Ok(redis.stream(STREAM))
}

type Handled = Arc<AtomicU64>;

async fn work(State(handled): State<Handled>) {
    handled.fetch_add(1, Ordering::Relaxed);
}

fn app(handled: Handled) -> Router {
    Router::new().task("work", work).with_state(handled)
}

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let url = env::var("REDIS_URL").unwrap_or_else(|_| "redis://127.0.0.1/".into());
    let admin = env::var("ADMIN_URL").unwrap_or_else(|_| url.clone());
    let admin = redis::Client::open(admin)?;
    let mut admin = admin.get_multiplexed_async_connection().await?;
    let vault = Arc::<Vault>::default();
    let rights = ["reset", "on", "~*", "&*", "+@all", "-@dangerous", "+info"];
    set_user(&mut admin, &rights).await?;
    vault.rotate(&mut admin).await?;

    // The worker and the client use one handle, which asks the vault for passwords.
    let redis = connect(&url, &vault).await?;
    let handled = Handled::default();
    let (stop, stopped) = oneshot::channel::<()>();
    let worker = serve(redis.clone(), app(handled.clone())).with_graceful_shutdown(async {
        let _ = stopped.await;
    });
    let worker = tokio::spawn(worker.into_future());

    let client = Client::new(redis);
    let mut sent = 0;
    for _ in 0..2 {
        let old = vault.rotate(&mut admin).await?;
        // Both passwords are valid until every connection has the new one.
        let rotated = Instant::now();
        while rotated.elapsed() < LIFETIME {
            client.enqueue("work", ()).await?;
            sent += 1;
            sleep(Duration::from_millis(10)).await;
        }
        set_user(&mut admin, &[&format!("<{old}")]).await?;
        println!("{} is the only valid password now", vault.password());
    }
    // Waits until every task is handled.
    while handled.load(Ordering::Relaxed) < sent {
        sleep(Duration::from_millis(10)).await;
    }
    let _ = stop.send(());
    worker.await??;
    let (asked, handled) = (
        vault.ask_count.load(Ordering::Relaxed),
        handled.load(Ordering::Relaxed),
    );
    println!("{sent} tasks sent, {handled} handled; the vault was asked {asked} times");

    let mut clean_up = redis::pipe();
    clean_up.cmd("ACL").arg("DELUSER").arg(USER).ignore();
    clean_up.cmd("DEL").arg(STREAM).ignore();
    Ok(clean_up.query_async(&mut admin).await?)
}
