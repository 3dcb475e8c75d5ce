//! Formats the output: tables for people, JSON for scripts.
//!
//! Any sender can choose names, headers, reasons and payloads. On a terminal, control characters
//! could move the cursor, change the title, or fake other output. So all text goes through
//! [`text`], and all JSON through [`json`].

pub(crate) mod json;
mod keys;
mod out;
mod screen;
mod table;
pub(crate) mod text;

pub(crate) use self::{keys::Keys, out::Out, screen::Screen, table::Table};
