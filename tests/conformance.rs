//! The conformance suite on every transport of this crate.
#![cfg(feature = "conformance")]

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
