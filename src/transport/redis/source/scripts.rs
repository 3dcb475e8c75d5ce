//! The Lua scripts. Each is one atomic step; every one that changes a delivery begins with the
//! fence, the entry must be pending for this worker, but for those that say it is done: there the first
//! to finish wins.

use crate::transport::redis::link::Script;

macro_rules! scripts {
    ($($(#[$doc:meta])* $name:ident = $($file:literal)+;)*) => {$(
        $(#[$doc])*
        pub(super) static $name: Script =
            Script::new(concat!($(include_str!(concat!("../scripts/", $file, ".lua"))),+));
    )*};
}

scripts! {
    /// Makes sure that the group exists.
    JOIN = "order" "join";
    /// Leaves it, where nothing is pending.
    LEAVE = "leave";
    /// Ends what was handled, on the retry stream.
    ACKNOWLEDGE = "acknowledge";
    /// Delivers again, now or later.
    REDELIVER = "fence" "fields" "redeliver";
    /// Ends a delivery.
    FINISH = "fence" "fields" "finish";
    /// Stores replies, and ends their requests.
    REPLY = "reply";
    /// Renews leases.
    RENEW = "fence" "renew";
    /// Fetches again what was fetched and did not arrive.
    RECOVER = "fence" "recover";
    /// Takes over what nobody looks after.
    TAKE_OVER = "turn" "holder" "fence" "fields" "take_over";
    /// Drops what every group has finished.
    TRIM = "turn" "holder" "order" "trim";
    /// Removes consumers that are gone.
    REAP = "turn" "holder" "reap";
}
