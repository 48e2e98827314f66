//! The prompt: what is trained, and the files it lives in.

pub mod file;
mod npy;
mod peft;

pub use file::PromptFile;
pub use peft::{PeftConfig, PeftInit, PeftTask};
