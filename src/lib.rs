//! Soft prompt tuning of frozen language models: only the work the prompt's gradient needs.

pub mod config;
pub mod data;
pub mod dtype;
pub mod error;

pub use error::{Error, Result};
