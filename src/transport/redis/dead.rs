//! The group's dead letters.

use std::time::{Duration, SystemTime};

use redis::Value;

use super::{
    Redis,
    keys::Keys,
    link::Retry,
    source::entry::{array, fields, unpacked},
};
use crate::{error::Error, message::MessageId, transport::DeadLetter};

/// How many fields a dead letter begins with that say what became of the message: group, origin,
/// reason, attempts, time.
const FACTS: usize = 5;

impl Redis {
    /// The oldest dead letters of the group, at most `count`. Nothing is taken away.
    ///
    /// They are the entries of the stream `{<stream>}:dead:<group>`.
    ///
    /// # Errors
    /// When the server cannot be reached or refuses.
    pub async fn dead_letters(&self, count: usize) -> Result<Vec<DeadLetter>, Error> {
        let keys = Keys::new(&self.settings.stream, &self.settings.group)?;
        let mut cmd = redis::cmd("XRANGE");
        cmd.arg(&keys.dead)
            .arg("-")
            .arg("+")
            .arg("COUNT")
            .arg(count);
        let letters = self.shared.link.command(cmd, Retry::Never).await?;
        Ok(array(letters).into_iter().filter_map(read).collect())
    }
}

/// Reads an entry of the stream of dead letters: `[id, [field, value, …]]`. What did not come from
/// a worker is left out.
fn read(entry: Value) -> Option<DeadLetter> {
    let mut facts = fields(array(entry).into_iter().nth(1)?);
    if facts.len() < FACTS {
        return None;
    }
    let kept = facts.split_off(FACTS);
    let fact = |index: usize| &facts[index].1;
    let number = |index: usize| std::str::from_utf8(fact(index)).ok()?.parse().ok();
    Some(DeadLetter {
        id: MessageId::from_utf8(fact(1).clone()).ok()?,
        // A blob is the only field then; a field of that name among others is the sender's own.
        fields: if kept.len() == 1 {
            unpacked(kept)
        } else {
            kept
        },
        reason: String::from_utf8_lossy(fact(2)).into_owned(),
        attempts: number(3).map(|attempts: u64| u32::try_from(attempts).unwrap_or(u32::MAX))?,
        died_at: SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(number(4)?))?,
    })
}
