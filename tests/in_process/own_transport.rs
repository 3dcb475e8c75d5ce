//! Tests that the transport in the docs passes the conformance suite.

#[path = "../../examples/transport/queue.rs"]
mod queue;

use bytes::Bytes;
use campanile::{
    Error, Name,
    conformance::{Capabilities, Factory},
    transport::Settings,
};
use queue::Queue;

impl Factory for Queue {
    type Handle = Queue;

    async fn connect(&self, settings: Settings) -> Result<Queue, Error> {
        Ok(self.with_settings(settings))
    }

    fn capabilities(&self) -> Capabilities {
        let mut capabilities = Capabilities::none();
        capabilities.delayed_redelivery = true;
        capabilities.raw_entries = true;
        capabilities
    }

    async fn add_raw(&self, stream: &Name, fields: Vec<(Bytes, Bytes)>) -> Result<(), Error> {
        let mut settings = Settings::default();
        settings.stream = stream.clone();
        self.with_settings(settings).add(fields);
        Ok(())
    }
}

/// The suite on several threads, in real time.
mod in_real_time {
    campanile::conformance_tests!(super::Queue::default());
}

/// The suite on one thread, in tokio's paused time.
mod in_paused_time {
    campanile::conformance_tests!(
        #[tokio::test(start_paused = true)]
        super::Queue::default()
    );
}
