//! How things look: tables for people, JSON for scripts.
//!
//! Names, headers, reasons and payloads come from anybody who can send. On a terminal a control
//! character among them could move the cursor, change the title, or pretend another output; so
//! [`text`] is what everything goes through that people see, and [`json`] what scripts get, which
//! may be a terminal too.

pub(crate) mod json;
mod out;
mod screen;
mod table;
pub(crate) mod text;

pub(crate) use self::{out::Out, screen::Screen, table::Table};
