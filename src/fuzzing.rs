//! Access to private parsers for the fuzz targets. Compiled only with `--cfg fuzzing`, which
//! cargo-fuzz sets; see `fuzz/README.md`.

use bytes::Bytes;

use crate::{message::Name, transport::glob};

/// Matches a pattern of events against a name.
pub fn matches(pattern: &[u8], text: &[u8]) -> bool {
    glob::matches(pattern, text)
}

/// Matches a pattern against a name with the simple reference implementation.
pub fn reference_matches(pattern: &[u8], text: &[u8]) -> bool {
    glob::model::matches(pattern, text)
}

/// Returns a pattern that matches only this text.
pub fn escape(text: &str) -> String {
    glob::escape(text)
}

/// Returns the reason why a name is invalid, or `None` if it is valid.
pub fn fault(name: &Name) -> Option<&'static str> {
    name.fault()
}

/// Joins a prefix and a name.
pub fn join(prefix: &Name, name: &Name) -> Name {
    Name::join(prefix, name)
}

/// Parses an id and formats it again.
pub fn entry_id(text: &[u8]) -> Option<String> {
    crate::transport::redis::decoders::entry_id(text)
}

/// Decodes the fields that a script has encoded.
pub fn unpack(encoded: &Bytes) -> Option<Vec<(Bytes, Bytes)>> {
    crate::transport::redis::decoders::unpack(encoded)
}

pub use crate::transport::redis::value::Value;

/// A decoder of a response. Returns a description of the response, or the reason why it is
/// malformed.
pub type Decode = fn(Value) -> Result<String, crate::Error>;

/// Returns all decoders of responses. Each has the name of its command or script, and a valid
/// response.
pub fn decoders() -> Vec<(&'static str, Value, Decode)> {
    let decoders = crate::transport::redis::decoders::all().into_iter();
    decoders
        .map(|decoder| (decoder.source, decoder.example, decoder.decode))
        .collect()
}
