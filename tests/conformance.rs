//! The conformance suite on every transport of this crate.
#![cfg(feature = "conformance")]

#[cfg(feature = "redis")]
mod support;

/// On several threads, in real time.
mod memory {
    campanile::conformance_tests!(campanile::transport::memory::Memory::new());
}

/// On one thread, in tokio's paused time: the same checks, without waiting.
mod memory_in_paused_time {
    campanile::conformance_tests!(
        #[tokio::test(start_paused = true)]
        campanile::transport::memory::Memory::new()
    );
}

/// On a server for each check, in real time.
#[cfg(feature = "redis")]
mod redis {
    use bytes::Bytes;
    use campanile::{
        Error, MessageId, Name, Redis,
        conformance::{Capabilities, Factory},
        transport::{DeadLetters, Settings, StreamStats},
    };

    use super::support::RedisServer;

    impl Factory for RedisServer {
        type Handle = Redis;

        async fn connect(&self, settings: Settings) -> Result<Redis, Error> {
            let redis = Redis::connect(&self.url()).await?;
            Ok(redis.with_settings(settings))
        }

        fn capabilities(&self) -> Capabilities {
            Capabilities::all()
        }

        async fn add_raw(&self, stream: &Name, fields: Vec<(Bytes, Bytes)>) -> Result<(), Error> {
            let mut command = vec![
                Bytes::from("XADD"),
                Bytes::from(stream.to_string()),
                "*".into(),
            ];
            command.extend(fields.into_iter().flat_map(|(field, value)| [field, value]));
            self.command(&command).await;
            Ok(())
        }

        fn dead_letters(&self, handle: &Redis) -> Option<DeadLetters> {
            Some(handle.dead_letters())
        }

        async fn stats(&self, handle: &Redis) -> Result<StreamStats, Error> {
            handle.stats().await
        }

        async fn cancel(&self, handle: &Redis, id: &MessageId) -> Result<bool, Error> {
            handle.cancel(id).await
        }
    }

    campanile::conformance_tests!(RedisServer::start().await);
}
