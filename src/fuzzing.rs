//! The fuzz targets' entrance to parsers that are private. It is only there when the compiler is
//! told `--cfg fuzzing`, as cargo-fuzz does; see `fuzz/README.md`.

use bytes::Bytes;

use crate::{message::Name, transport::glob};

/// Whether a pattern of events matches a name.
pub fn matches(pattern: &[u8], text: &[u8]) -> bool {
    glob::matches(pattern, text)
}

/// The same, as it can be seen to be right.
pub fn plainly_matches(pattern: &[u8], text: &[u8]) -> bool {
    glob::model::matches(pattern, text)
}

/// The pattern that matches this text alone.
pub fn escape(text: &str) -> String {
    glob::escape(text)
}

/// What is wrong with a name.
pub fn fault(name: &Name) -> Option<&'static str> {
    name.fault()
}

/// A name within a group.
pub fn join(prefix: &Name, name: &Name) -> Name {
    Name::join(prefix, name)
}

/// The id in a text, as it is written again.
pub fn entry_id(text: &[u8]) -> Option<String> {
    crate::transport::redis::readers::entry_id(text)
}

/// The fields in a blob that a script wrote.
pub fn unpack(blob: &Bytes) -> Option<Vec<(Bytes, Bytes)>> {
    crate::transport::redis::readers::unpack(blob)
}

pub use crate::transport::redis::response::Value;

/// What takes an answer apart and shows what it found, or says why it cannot be one.
pub type Read = fn(Value) -> Result<String, crate::Error>;

/// Everything that takes answers of a server apart: whose they are, such an answer, and how it is
/// read.
pub fn readers() -> Vec<(&'static str, Value, Read)> {
    let readers = crate::transport::redis::readers::all().into_iter();
    readers
        .map(|reader| (reader.of, reader.answer, reader.read))
        .collect()
}
