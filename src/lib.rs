//! Soft prompt tuning of frozen language models: only the work the prompt's gradient needs.

pub mod checkpoint;
pub mod dtype;
pub mod error;
pub mod metrics;
pub mod optim;
pub mod prompt;
pub mod storage;
pub mod tensorfile;
pub mod values;

pub use error::{Error, Result};
