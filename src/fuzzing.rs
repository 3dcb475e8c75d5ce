//! Access to private parsers for the fuzz targets. Compiled only with `--cfg fuzzing`, which
//! cargo-fuzz sets; see `fuzz/README.md`.

use bytes::Bytes;

use crate::{message::Name, transport::glob};

/// Matches a pattern of events against a name.
pub fn matches(pattern: &[u8], text: &[u8]) -> bool {
    glob::matches(pattern, text)
}

/// Matches with the simple reference implementation.
pub fn plainly_matches(pattern: &[u8], text: &[u8]) -> bool {
    glob::model::matches(pattern, text)
}

/// A pattern that matches only this text.
pub fn escape(text: &str) -> String {
    glob::escape(text)
}

/// The reason why a name is invalid, if it is.
pub fn fault(name: &Name) -> Option<&'static str> {
    name.fault()
}

/// Joins a prefix and a name.
pub fn join(prefix: &Name, name: &Name) -> Name {
    Name::join(prefix, name)
}

/// Parses an id and formats it again.
pub fn entry_id(text: &[u8]) -> Option<String> {
    crate::transport::redis::readers::entry_id(text)
}

/// Decodes the fields that a script has encoded.
pub fn unpack(encoded: &Bytes) -> Option<Vec<(Bytes, Bytes)>> {
    crate::transport::redis::readers::unpack(encoded)
}

pub use crate::transport::redis::value::Value;

/// A reader of a response. Returns a description of the response, or the reason why it is
/// malformed.
pub type Read = fn(Value) -> Result<String, crate::Error>;

/// All readers of responses: the name, a valid response, and the reader.
pub fn readers() -> Vec<(&'static str, Value, Read)> {
    let readers = crate::transport::redis::readers::all().into_iter();
    readers
        .map(|reader| (reader.of, reader.answer, reader.read))
        .collect()
}
