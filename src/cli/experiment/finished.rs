//! What a finished run that trained weights came to, in its directory, as it keeps no checkpoint that could tell: an
//! experiment that goes on does not train it again.

use crate::checkpoint::{Best, Fingerprints};
use crate::config::TrainConfig;
use crate::error::{Error, Place, Result};
use crate::storage::atomic_write;
use crate::train::{Ended, Summary};
use serde::{Deserialize, Serialize};

const FILE: &str = "finished.json";

/// Numbers are as Rust writes them, so that they come back with the same bits.
#[derive(Serialize, Deserialize)]
struct Finished {
    fingerprints: Fingerprints,
    /// How long the run was to be.
    length: String,
    steps: u64,
    ended: Ended,
    last_loss: Option<String>,
    /// Metric, value and step.
    best: Option<(String, String, u64)>,
    final_hash: String,
}

fn length(config: &TrainConfig) -> String {
    match config.max_steps {
        Some(steps) => format!("{steps} steps"),
        None => format!("{:?} epochs", config.num_train_epochs),
    }
}

/// Writes the `summary` of a run of `config`.
pub(super) fn write(config: &TrainConfig, fingerprints: &Fingerprints, summary: &Summary) -> Result<()> {
    let number = |x: f64| format!("{x:?}");
    let finished = Finished {
        fingerprints: fingerprints.clone(),
        length: length(config),
        steps: summary.steps,
        ended: summary.ended,
        last_loss: summary.last_loss.map(number),
        best: summary.best.as_ref().map(|best| (best.metric.clone(), number(best.value), best.step)),
        final_hash: summary.final_hash.clone(),
    };
    let json = serde_json::to_vec_pretty(&finished)
        .map_err(|error| Error::op("experiment", "a summary that JSON can hold", error.to_string()))?;
    atomic_write(config.output_dir.join(FILE), &json)
}

/// What the run of `config` came to, if it has been finished.
///
/// # Errors
/// `Input` where it was another run, or a shorter or longer one, or the file is damaged.
pub(super) fn read(config: &TrainConfig, fingerprints: &Fingerprints) -> Result<Option<Summary>> {
    let path = config.output_dir.join(FILE);
    let bytes = match std::fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::io(&path, "read", error)),
    };
    let place = || Place::file(&path);
    let damaged = |got: String| {
        Error::input(place(), "what a finished run came to, as this version writes it", got)
            .hint("remove the run's directory to train it again")
    };
    let finished: Finished = serde_json::from_slice(&bytes).map_err(|error| damaged(error.to_string()))?;
    finished.fingerprints.expect(fingerprints, place)?;
    if finished.length != length(config) {
        return Err(Error::input(place(), format!("the {} that it had", finished.length), length(config))
            .hint("its checkpoints are gone: remove the run's directory to train it again"));
    }
    let number = |text: String| text.parse::<f64>().map_err(|error| damaged(format!("{text}: {error}")));
    let best = finished
        .best
        .map(|(metric, value, step)| Ok::<Best, Error>(Best { metric, value: number(value)?, step, prompt: None }));
    Ok(Some(Summary {
        steps: finished.steps,
        ended: finished.ended,
        last_loss: finished.last_loss.map(number).transpose()?,
        best: best.transpose()?,
        best_path: config.output_dir.join("best"),
        final_path: config.output_dir.join("final"),
        final_hash: finished.final_hash,
    }))
}
