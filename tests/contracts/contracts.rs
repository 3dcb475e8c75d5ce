//! Tests of contracts. Those of AsyncAPI documents install the official parser with npm, in the target
//! directory.

mod asyncapi;
mod codecs;
mod compare;
mod typed;
mod versions;
