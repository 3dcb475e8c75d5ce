//! Tests of the layers that do not work by key, through `serve` and around clients, on both
//! transports.

mod catch_panic;
mod chaos;
mod circuit_breaker;
mod filter;
mod request_id;
mod retry;
mod timeout;

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use campanile::{
    Redis,
    transport::{Backoff, DeadLetter, Page, Settings},
};

use crate::{
    support::{RedisServer, Signal, worker::Worker},
    transports::{Transport, until},
};

/// Makes a test of each function on each transport, in real time.
macro_rules! on_both {
    ($($test:ident),* $(,)?) => {
        mod memory {
            $(#[tokio::test]
            async fn $test() {
                super::$test(crate::policy::quick(campanile::transport::memory::Memory::new())).await;
            })*
        }

        mod redis {
            $(#[tokio::test]
            async fn $test() {
                let server = crate::support::RedisServer::start().await;
                super::$test(crate::policy::quick(crate::policy::connect(&server).await)).await;
            })*
        }
    };
}
use on_both;

async fn connect(server: &RedisServer) -> Redis {
    Redis::connect(&server.url())
        .await
        .expect("the server is reachable")
}

/// Sets short waits for redelivery.
fn quick<T: Transport>(transport: T) -> T {
    let mut settings = Settings::default();
    settings.backoff = Backoff::exponential(Duration::from_millis(10), Duration::from_millis(20));
    transport.set(settings)
}

/// Waits for the only dead letter.
async fn dead<T: Transport>(transport: &T) -> DeadLetter {
    let letters = transport.dead_letters();
    until(async || letters.count().await.unwrap() > 0).await;
    let mut page = letters.list(Page::first(2)).await.unwrap();
    assert_eq!(page.letters.len(), 1);
    page.letters.remove(0)
}

/// Values that handlers record.
#[derive(Debug)]
struct Log<T>(Arc<Mutex<Vec<T>>>);

impl<T> Clone for Log<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T: Clone> Log<T> {
    fn new() -> Self {
        Self(Arc::default())
    }

    fn add(&self, entry: T) {
        self.0.lock().unwrap().push(entry);
    }

    fn all(&self) -> Vec<T> {
        self.0.lock().unwrap().clone()
    }

    fn len(&self) -> usize {
        self.0.lock().unwrap().len()
    }
}
