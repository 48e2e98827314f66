//! The prompt: what is trained, and the files it lives in.

pub mod few_shot;
pub mod file;
mod init;
mod npy;
mod peft;

pub use few_shot::{FewShot, FewShotOptions};
pub use file::PromptFile;
pub use init::{Init, initial_prompt};
pub(crate) use peft::TASK;
pub use peft::{PeftConfig, PeftInit, PeftTask};
