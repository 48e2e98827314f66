//! Training the runs of an experiment.

use super::super::members::run_members;
use super::super::prepare::{Data, Files, fit_into, open_model, training};
use super::super::train::{Watcher, signals};
use super::finished;
use crate::checkpoint;
use crate::cli::Terminal;
use crate::config::{Method, Resume, TrainConfig};
use crate::device::parse_bytes;
use crate::error::{Error, Result};
use crate::train::{Summary, refuse_to_overwrite, train_or_go_on};
use std::path::Path;
use std::sync::atomic::AtomicUsize;

/// Trains every run: prompts of one model side by side, `group_size` in a pass, then weights one run after another. What became
/// of each is in the order of `configs`; an interruption leaves those that had not begun without a result.
///
/// # Errors
/// What keeps any of the prompts from beginning.
pub(super) fn run_all(
    configs: &[TrainConfig],
    dir: &Path,
    group_size: Option<usize>,
    terminal: &Terminal,
) -> Result<Vec<Option<Result<Summary>>>> {
    let mut results: Vec<Option<Result<Summary>>> = configs.iter().map(|_| None).collect();
    let name = |config: &TrainConfig| config.output_dir.strip_prefix(dir).unwrap_or(dir).display().to_string();
    for model in super::models_of(configs.iter().filter(|config| config.method == Method::Prompt)) {
        let is_one = |config: &TrainConfig| config.method == Method::Prompt && config.model == model;
        let indices: Vec<usize> = (0..configs.len()).filter(|&index| is_one(&configs[index])).collect();
        let members = indices.iter().map(|&index| (name(&configs[index]), configs[index].clone())).collect();
        let outcomes = run_members(members, group_size, terminal, || Ok(()))?;
        for (index, outcome) in indices.into_iter().zip(outcomes.members) {
            results[index] = Some(outcome.result);
        }
        if is_interrupted(&results) {
            return Ok(results);
        }
    }
    let mut files = Files::default();
    let interrupt = signals()?;
    for (config, result) in configs.iter().zip(&mut results).filter(|(config, _)| config.method != Method::Prompt) {
        terminal.note(&format!("{}: all weights", name(config)));
        let outcome = weights(config, &mut files, &interrupt, terminal);
        let ends_all = matches!(outcome, Err(Error::Interrupted { .. }));
        *result = Some(outcome);
        if ends_all {
            break;
        }
    }
    Ok(results)
}

fn is_interrupted(results: &[Option<Result<Summary>>]) -> bool {
    results.iter().flatten().any(|result| matches!(result, Err(Error::Interrupted { .. })))
}

/// One run that trains weights, on a model of its own.
fn weights(config: &TrainConfig, files: &mut Files, interrupt: &AtomicUsize, terminal: &Terminal) -> Result<Summary> {
    refuse_to_overwrite(&config.output_dir, &config.resume)?;
    let mut model = open_model(config)?;
    let data = Data::load(config, &model, files)?;
    if let Some(limit) = config.memory_limit.as_deref().and_then(parse_bytes) {
        fit_into(limit, &mut model, config, &data.train, terminal)?;
    }
    let training = training(config, &model, &data)?;
    let fingerprints = training.fingerprints()?;
    if config.resume != Resume::Last(false)
        && let Some(summary) = finished::read(config, &fingerprints)?
    {
        return Ok(summary);
    }
    let mut watcher = Watcher::new(terminal, config.logging_steps);
    let summary = train_or_go_on(training, &mut watcher, interrupt);
    watcher.bar.finish_and_clear();
    if let Ok(summary) = &summary {
        finished::write(config, &fingerprints, summary)?;
        drop_checkpoints(&config.output_dir)?;
    }
    summary
}

/// Removes a finished run's checkpoints: they hold the weights three times over.
fn drop_checkpoints(dir: &Path) -> Result<()> {
    for (_, path) in checkpoint::list(dir)? {
        std::fs::remove_dir_all(&path).map_err(|error| Error::io(&path, "remove", error))?;
    }
    Ok(())
}
