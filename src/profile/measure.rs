//! One step, taken and weighed.

use crate::bench::{self, Options, Rows, Trained};
use crate::device::MemoryReport;
use crate::error::Result;
use crate::models::Model;
use crate::profile::Stream;

/// What one step held.
#[derive(Debug, Clone)]
pub struct Measured {
    /// The device's account, from a clean peak.
    pub memory: MemoryReport,
    /// The most that the process held; none where the system does not say.
    pub peak_rss: Option<usize>,
    /// The rows of the step.
    pub stream: Stream,
}

/// Takes one step, the optimizer's included, on made-up examples: `examples` of `tokens` tokens, the last one predicted,
/// behind a prompt of `prompt_rows` rows, or of none where the model was opened as
/// [trainable](crate::ModelOptions::trainable). A step before it makes what stays, and is not counted.
///
/// # Errors
/// [`crate::Error::Config`] for sizes that no step has; [`crate::Error::Device`] where memory runs out.
pub fn measure(model: &Model, prompt_rows: usize, examples: usize, tokens: usize) -> Result<Measured> {
    let rows = Rows::made(model.config().vocab_size, examples, tokens, None)?;
    let trained = if model.parameters().is_empty() {
        let numbers = prompt_rows * model.config().hidden_size;
        // Small, and no two rows alike.
        let values: Vec<f64> = (0..numbers).map(|index| ((index * 37 % 101) as f64 - 50.0) / 2500.0).collect();
        Trained::Prompts(vec![model.prompt_from(prompt_rows, &values)?])
    } else {
        Trained::Weights
    };
    let found = bench::measure(model, trained, &rows, Options { warm_up: 1, steps: 1, library: false })?;
    Ok(Measured { memory: found.memory, peak_rss: found.peak_rss, stream: Stream::of(&found.layout) })
}
