//! The messages that the parts of the service exchange.

use campanile::contract::{Rpc, Task};
use serde::{Deserialize, Serialize};

/// Converts an image. Version 2 has a title.
pub const CONVERT: Task<Image> = Task::new("images.convert")
    .version(2)
    .about("Converts an image to its negative");

/// Tells other services that an image was converted.
pub const CONVERTED: Task<Converted> = Task::new("image.converted");

/// Asks for the size that an image will have after its conversion.
pub const SIZE: Rpc<Image, u64> = Rpc::new("images.size");

/// Deletes the files that nobody needs any more.
pub const CLEAN: Task<()> = Task::new("images.clean");

/// An image, as a client has sent it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Image {
    /// The text below the image.
    pub title: String,
    /// The pixels, row by row.
    pub rows: Vec<Vec<u8>>,
}

/// The first version of an [`Image`], which services of the old release still send.
#[derive(Debug, Deserialize)]
pub struct ImageV1 {
    /// The pixels, row by row.
    pub rows: Vec<Vec<u8>>,
}

/// A converted image.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Converted {
    /// The text below the image.
    pub title: String,
    /// The number of its bytes.
    pub bytes: u64,
}
