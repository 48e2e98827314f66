//! Training the runs of an experiment.

use super::super::prepare::{Data, Files, fit_into, open_model, training};
use super::super::train::{Watcher, signals};
use crate::checkpoint;
use crate::cli::Terminal;
use crate::config::{Method, TrainConfig};
use crate::device::parse_bytes;
use crate::error::{Error, Result};
use crate::models::Model;
use crate::train::{Summary, refuse_to_overwrite, train};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicUsize;

/// A run and what became of it.
pub(super) struct Outcome {
    pub(super) config: TrainConfig,
    pub(super) result: Result<Summary>,
}

/// Trains one run after another. A frozen model is opened once for all runs on it; one whose weights are trained anew each
/// time. A run that fails ends alone, an interruption ends all.
pub(super) fn run_members(configs: Vec<TrainConfig>, terminal: &Terminal) -> Result<Vec<Outcome>> {
    let interrupt = signals()?;
    let mut files = Files::default();
    let mut frozen: Option<(PathBuf, Model)> = None;
    let mut outcomes = Vec::with_capacity(configs.len());
    let count = configs.len();
    for (index, config) in configs.into_iter().enumerate() {
        terminal.note(&format!("run {} of {count}: {}", index + 1, config.output_dir.display()));
        let result = one(&config, &mut frozen, &mut files, &interrupt, terminal);
        match &result {
            Err(error @ Error::Interrupted { .. }) => {
                terminal.note(&format!("{error}"));
                outcomes.push(Outcome { config, result });
                break;
            }
            Err(error) => terminal.note(&format!("{} failed: {error}", config.output_dir.display())),
            Ok(_) => {}
        }
        outcomes.push(Outcome { config, result });
    }
    Ok(outcomes)
}

fn one(
    config: &TrainConfig,
    frozen: &mut Option<(PathBuf, Model)>,
    files: &mut Files,
    interrupt: &AtomicUsize,
    terminal: &Terminal,
) -> Result<Summary> {
    refuse_to_overwrite(&config.output_dir, &config.resume)?;
    // Another one goes first: two may not fit.
    let mut model = match frozen.take().filter(|(path, _)| *path == config.model && config.method == Method::Prompt) {
        Some((_, model)) => model,
        None => open_model(config)?,
    };
    let data = Data::load(config, &model, files)?;
    if let Some(limit) = config.memory_limit.as_deref().and_then(parse_bytes) {
        fit_into(limit, &mut model, config, &data.train, terminal)?;
    }
    let mut watcher = Watcher::new(terminal, config.logging_steps);
    let summary = train(training(config, &model, &data)?, &mut watcher, interrupt);
    watcher.bar.finish_and_clear();
    if config.method == Method::Prompt {
        *frozen = Some((config.model.clone(), model));
    } else if summary.is_ok() {
        drop_checkpoints(&config.output_dir)?;
    }
    summary
}

/// Removes a finished run's checkpoints: they hold the weights three times over, and nobody goes on from them.
fn drop_checkpoints(dir: &Path) -> Result<()> {
    for (_, path) in checkpoint::list(dir)? {
        std::fs::remove_dir_all(&path).map_err(|error| Error::io(&path, "remove", error))?;
    }
    Ok(())
}
