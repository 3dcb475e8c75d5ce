//! The conformance suite on every transport of this crate.

/// The suite on several threads, in real time.
mod memory {
    campanile::conformance_tests!(campanile::transport::memory::Memory::new());
}

/// The suite on one thread with tokio's paused time, which makes its waits short.
mod memory_in_paused_time {
    campanile::conformance_tests!(
        #[tokio::test(start_paused = true)]
        campanile::transport::memory::Memory::new()
    );
}

/// The suite in real time. Each check starts a server.
mod redis {
    use bytes::Bytes;
    use campanile::{
        Error, Name, Redis,
        conformance::{Capabilities, Factory},
        transport::{
            Backlog, Control, DeadLetters, Limit, Messages, Minute, Schedules, Settings,
            StreamStats, Tasks, Workers,
        },
    };

    use crate::support::{RedisServer, version};

    impl Factory for RedisServer {
        type Handle = Redis;

        async fn connect(&self, settings: Settings) -> Result<Redis, Error> {
            let redis = Redis::connect(&self.url()).await?;
            Ok(redis.with_settings(settings))
        }

        fn capabilities(&self) -> Capabilities {
            let mut capabilities = Capabilities::all();
            capabilities.sharded_events = version() >= (7, 0);
            capabilities.unread_lag = version() >= (7, 0);
            capabilities
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

        async fn backlog(&self, handle: &Redis) -> Result<Backlog, Error> {
            handle.backlog().await
        }

        fn tasks(&self, handle: &Redis) -> Option<Tasks> {
            Some(handle.tasks())
        }

        fn messages(&self, handle: &Redis) -> Option<Messages> {
            Some(handle.messages())
        }

        fn control(&self, handle: &Redis) -> Option<Control> {
            Some(handle.control())
        }

        fn workers(&self, handle: &Redis) -> Option<Workers> {
            Some(handle.workers())
        }

        async fn history(&self, handle: &Redis) -> Result<Vec<Minute>, Error> {
            handle.history().await
        }

        fn limit(&self, handle: &Redis, name: &str) -> Option<Result<Limit, Error>> {
            Some(handle.limit(name))
        }

        fn schedules(&self, handle: &Redis) -> Option<Schedules> {
            Some(handle.schedules())
        }

        /// Gives all pending deliveries to a consumer that has been silent for an hour. If the
        /// workers own partitions, removes them from the list of members instead.
        async fn end_leases(&self, settings: &Settings) -> Result<(), Error> {
            let (stream, group) = (settings.stream.as_str(), settings.group.as_str());
            let members = format!("{{{stream}}}:members:{group}");
            if self.query::<u64>(&["DEL", &members]).await > 0 {
                return Ok(());
            }
            let pending: Vec<(String, String, u64, u64)> = self
                .query(&["XPENDING", stream, group, "-", "+", "1000"])
                .await;
            let mut claim = vec!["XCLAIM", stream, group, "campanile-rival", "0"];
            claim.extend(pending.iter().map(|(id, ..)| id.as_str()));
            claim.extend(["IDLE", "3600000", "RETRYCOUNT", "1", "JUSTID"]);
            self.command(&claim).await;
            Ok(())
        }

        /// Stops the server after it has saved its data, and starts it again.
        async fn restart(&self) -> Result<(), Error> {
            // The connection closes with the server, so there is no response.
            let _ = self.try_command(&["SHUTDOWN", "SAVE"]).await;
            RedisServer::restart(self).await;
            Ok(())
        }
    }

    campanile::conformance_tests!(RedisServer::start().await);
}
