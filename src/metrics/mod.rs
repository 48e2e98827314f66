//! What a run reports: a JSONL log, TensorBoard events, and the scores of an evaluation.

pub mod log;
pub mod sample;
pub mod score;
pub mod tensorboard;

pub use log::MetricsLog;
pub use sample::Sample;
pub use score::{Confusion, Normalise, exact_match, exact_match_rate};
pub use tensorboard::EventWriter;
