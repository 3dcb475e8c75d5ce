//! Notices of the server about keys that were written.
//! <https://redis.io/docs/latest/develop/reference/client-side-caching/>
//!
//! A server with tracking remembers the keys that a connection has read. When such a key is
//! written, the server sends one notice and forgets the key. To get the next notice, the connection
//! has to read the key again.

use std::{
    collections::BTreeMap,
    pin::pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use tokio::sync::Notify;

use super::Value;
use crate::sync::lock;

/// The signals of tracked keys, in a fixed order, so that a simulation can be repeated. Several
/// connections share one instance.
#[derive(Debug, Default)]
pub(in crate::transport::redis) struct TrackedKeys(Mutex<BTreeMap<Vec<u8>, Arc<WriteSignal>>>);

/// Fires when one of its keys was written, or may have been written.
#[derive(Debug, Default)]
pub(in crate::transport::redis) struct WriteSignal {
    /// Set by `arm`, cleared when the signal fires.
    is_armed: AtomicBool,
    /// Has a permit if a connection was lost and nobody has noticed it.
    lost: Notify,
    fired: Notify,
}

impl TrackedKeys {
    /// Sets the signal of a key.
    pub(in crate::transport::redis) fn add(&self, key: &str, signal: &Arc<WriteSignal>) {
        lock(&self.0).insert(key.as_bytes().to_vec(), signal.clone());
    }

    /// Fires the signals of the keys in an invalidation push. Ignores other pushes.
    pub(super) fn handle_push(&self, push: &[Value]) {
        match push {
            [Value::Text(kind), Value::Array(keys)] if kind == "invalidate" => {
                let signals = lock(&self.0);
                let written = keys.iter().filter_map(|key| match key {
                    Value::Text(key) => signals.get(&**key),
                    _ => None,
                });
                written.for_each(|signal| signal.fire());
            }
            // The server was emptied.
            [Value::Text(kind), Value::Nil] if kind == "invalidate" => {
                lock(&self.0).values().for_each(|signal| signal.fire());
            }
            _ => {}
        }
    }

    /// Fires all signals, because a connection is lost. It may have tracked any of the keys.
    pub(super) fn connection_lost(&self) {
        for signal in lock(&self.0).values() {
            signal.lost.notify_one();
            signal.fire();
        }
    }
}

impl WriteSignal {
    /// Arms the signal. The caller must do this before it reads the keys, since a notice may come
    /// right after the read.
    pub(in crate::transport::redis) fn arm(&self) {
        self.is_armed.store(true, Ordering::SeqCst);
    }

    /// Returns `false` if the signal has fired since it was armed.
    pub(in crate::transport::redis) fn is_armed(&self) -> bool {
        self.is_armed.load(Ordering::SeqCst)
    }

    /// Returns `true` if a connection was lost since the last call.
    pub(in crate::transport::redis) fn take_lost(&self) -> bool {
        pin!(self.lost.notified()).enable()
    }

    /// Waits until a connection is lost. Returns immediately if one was lost since the last call of
    /// this function or of [`take_lost`](Self::take_lost).
    ///
    /// # Cancel safety
    /// Dropping the future loses no notice.
    pub(in crate::transport::redis) async fn lost(&self) {
        self.lost.notified().await;
    }

    pub(in crate::transport::redis) fn fire(&self) {
        self.is_armed.store(false, Ordering::SeqCst);
        self.fired.notify_one();
    }

    /// Waits until the signal is not armed.
    pub(in crate::transport::redis) async fn fired(&self) {
        while self.is_armed() {
            self.fired.notified().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    fn text(text: &str) -> Value {
        Value::Text(text.to_owned().into())
    }

    fn invalidate(keys: Value) -> [Value; 2] {
        [text("invalidate"), keys]
    }

    #[test]
    fn a_signal_fires_for_its_keys_and_once_until_it_is_armed_again() {
        let (tracked, [first, second]) = (TrackedKeys::default(), [(); 2].map(|()| Arc::default()));
        tracked.add("a", &first);
        tracked.add("b", &first);
        tracked.add("c", &second);
        let armed = || {
            first.arm();
            second.arm();
        };
        let fired = |signal: &WriteSignal| signal.fired().now_or_never().is_some();
        armed();
        tracked.handle_push(&invalidate(Value::Array(vec![text("b"), text("x")])));
        assert_eq!((fired(&first), fired(&second)), (true, false));
        armed();
        assert_eq!((fired(&first), fired(&second)), (false, false));
        tracked.handle_push(&invalidate(Value::Nil));
        assert_eq!((fired(&first), fired(&second)), (true, true));
        armed();
        tracked.handle_push(&[text("other"), Value::Array(vec![text("a")])]);
        tracked.handle_push(&invalidate(Value::Int(1)));
        assert_eq!((fired(&first), fired(&second)), (false, false));
        assert!(!first.take_lost());
        tracked.connection_lost();
        assert_eq!((fired(&first), fired(&second)), (true, true));
        assert_eq!((first.take_lost(), first.take_lost()), (true, false));
    }
}
