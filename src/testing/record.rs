//! Records of what happened to messages, and their display.

use std::{collections::BTreeSet, fmt, time::Duration};

use bytes::Bytes;

use crate::{
    message::{Kind, Message, Name},
    transport::{Discarded, memory::observer::MessageEvent},
};

/// An event in the life of a message.
///
/// It is displayed as one line: the time, the message, the event and the reason.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Record {
    /// The time since the harness was created, on tokio's clock.
    pub at: Duration,
    /// The event.
    pub happened: MessageEvent,
    /// The message, with its id and its attempt. `None` for an entry that cannot be decoded.
    pub message: Option<Message>,
    /// The stream, or `None` for a published event.
    pub stream: Option<Name>,
    /// The group of the delivery. `None` for a published event, and for [`MessageEvent::Sent`].
    pub group: Option<Name>,
}

impl Record {
    /// Returns the message's kind; `None` for an entry that cannot be decoded.
    pub fn kind(&self) -> Option<Kind> {
        self.message.as_ref().map(Message::kind)
    }

    /// Returns the message's full name; empty for an entry that cannot be decoded.
    pub fn name(&self) -> &str {
        self.message.as_ref().map_or("", |message| message.name())
    }

    /// Returns the reason of a failure, a redelivery or a dead letter.
    pub fn reason(&self) -> Option<&str> {
        match &self.happened {
            MessageEvent::Failed { reason }
            | MessageEvent::Redelivered { reason, .. }
            | MessageEvent::DeadLettered { reason } => Some(reason),
            _ => None,
        }
    }
}

impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ", Seconds(self.at))?;
        match &self.message {
            Some(message) => Title(message).fmt(f)?,
            None => f.write_str("an entry that is no message")?,
        }
        match &self.happened {
            MessageEvent::Sent { delay } if delay.is_zero() => f.write_str(": sent"),
            MessageEvent::Sent { delay } => write!(f, ": sent, due in {}", Seconds(*delay)),
            MessageEvent::Acknowledged if self.kind() == Some(Kind::Event) => {
                f.write_str(": handled")
            }
            MessageEvent::Acknowledged => f.write_str(": acknowledged"),
            MessageEvent::Failed { .. } => f.write_str(": failed"),
            MessageEvent::Redelivered { after, counted, .. } => {
                let uncounted = if *counted { "" } else { ", not counted" };
                write!(f, ": redelivered after {}{uncounted}", Seconds(*after))
            }
            MessageEvent::Parked => f.write_str(": parked"),
            MessageEvent::DeadLettered { .. } => f.write_str(": dead-lettered"),
            MessageEvent::Discarded(Discarded::Expired) => f.write_str(": expired"),
            MessageEvent::Discarded(Discarded::Requested) => f.write_str(": discarded"),
            MessageEvent::Discarded(Discarded::Ignored) => {
                f.write_str(": ignored, its name is unknown")
            }
            MessageEvent::Released => f.write_str(": released"),
            MessageEvent::Abandoned => f.write_str(": abandoned by its worker"),
        }?;
        let attempt = self.message.as_ref().map(|message| message.parts().attempt);
        if let Some(attempt) = attempt.filter(|attempt| attempt.is_retry()) {
            write!(f, ", attempt {}", attempt.0)?;
        }
        match self.reason() {
            Some(reason) => write!(f, ": {reason}"),
            None => Ok(()),
        }
    }
}

/// Displays each record on one line, with an optional remark.
pub(super) struct Listing<'a> {
    records: &'a [Record],
    remark: &'a dyn Fn(&Record) -> Option<&'static str>,
}

impl<'a> Listing<'a> {
    pub(super) fn new(records: &'a [Record]) -> Self {
        Self {
            records,
            remark: &|_| None,
        }
    }

    pub(super) fn remark(self, remark: &'a dyn Fn(&Record) -> Option<&'static str>) -> Self {
        Self { remark, ..self }
    }
}

impl fmt::Display for Listing<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const MAX_SHOWN: usize = 100;
        let Self { records, remark } = self;
        if records.is_empty() {
            return f.write_str("nothing has happened");
        }
        f.write_str("what has happened:")?;
        let hidden = records.len().saturating_sub(MAX_SHOWN);
        if hidden > 0 {
            write!(f, "\n  … {hidden} more before that")?;
        }
        let groups: BTreeSet<_> = records
            .iter()
            .filter_map(|record| record.group.as_ref())
            .collect();
        for record in &records[hidden..] {
            write!(f, "\n  {record}")?;
            if let Some(group) = record.group.as_ref().filter(|_| groups.len() > 1) {
                write!(f, " [group `{group}`]")?;
            }
            if let Some(remark) = remark(record) {
                write!(f, "   <- {remark}")?;
            }
        }
        Ok(())
    }
}

/// Displays the kind and the name of a message, and the start of its payload.
pub(super) struct Title<'a>(pub(super) &'a Message);

impl fmt::Display for Title<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let message = self.0;
        write!(f, "{} `{}`", message.kind(), message.name())?;
        if message.payload().is_empty() {
            return Ok(());
        }
        write!(f, " {}", Excerpt(message.payload()))
    }
}

/// Displays the start of a payload, as text if possible.
pub(super) struct Excerpt<'a>(pub(super) &'a Bytes);

impl fmt::Display for Excerpt<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const MAX_SHOWN: usize = 120;
        let text = match std::str::from_utf8(self.0) {
            Ok(text) if !text.contains(char::is_control) => text.to_owned(),
            _ => format!(
                "0x[{}]",
                self.0.slice(..self.0.len().min(MAX_SHOWN)).escape_ascii()
            ),
        };
        match text.char_indices().nth(MAX_SHOWN) {
            Some((end, _)) => write!(f, "{}… ({} bytes)", &text[..end], self.0.len()),
            None => f.write_str(&text),
        }
    }
}

/// Displays a duration in seconds, with milliseconds.
pub(super) struct Seconds(pub(super) Duration);

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:03}s", self.0.as_secs(), self.0.subsec_millis())
    }
}
