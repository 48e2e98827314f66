//! Several prompts trained side by side: the model is opened once, and each data file is read once.

use super::Terminal;
use super::prepare::{Data, Files, fit_group_into, open_model, training};
use super::train::{Watcher, signals};
use crate::config::{OF_THE_PASS, TrainConfig};
use crate::data::Dataset;
use crate::device::{MemoryReport, parse_bytes};
use crate::error::{Error, Place, Result};
use crate::train::{Observer, Summary, refuse_to_overwrite, sweep};
use std::time::Instant;

/// A run, and what became of it.
pub(super) struct Outcome {
    pub(super) name: String,
    pub(super) config: TrainConfig,
    pub(super) result: Result<Summary>,
    /// From the start of all runs to the end of this one.
    pub(super) seconds: f64,
}

/// What became of all runs, and the memory that they took.
pub(super) struct Outcomes {
    pub(super) members: Vec<Outcome>,
    pub(super) memory: MemoryReport,
}

/// Runs `members`, each with a name for its lines, at most `group_size` prompts in a pass; without it as many as there are,
/// or as fit into the configurations' `memory_limit`. `ready` is called when all that can be refused beforehand has been,
/// and nothing has been written.
///
/// # Errors
/// What keeps any of them from beginning. How each ended, its own error too, is in its outcome.
pub(super) fn run_members(
    members: Vec<(String, TrainConfig)>,
    group_size: Option<usize>,
    terminal: &Terminal,
    ready: impl FnOnce() -> Result<()>,
) -> Result<Outcomes> {
    let start = Instant::now();
    let Some((_, first)) = members.first() else {
        return Err(Error::op("run_members", "at least one run", "none"));
    };
    for (name, config) in &members {
        if let Some(key) = first.differences(config)?.into_iter().find(|key| OF_THE_PASS.contains(key)) {
            return Err(Error::config(
                Place::item(key),
                "one value for all runs on a model",
                format!("another in {name}"),
            ));
        }
        refuse_to_overwrite(&config.output_dir, &config.resume)?;
    }
    let mut model = open_model(first)?;
    let mut files = Files::default();
    let load = |(_, config): &(String, TrainConfig)| Data::load(config, &model, &mut files);
    let data = members.iter().map(load).collect::<Result<Vec<Data>>>()?;
    let mut said = Vec::new();
    data.iter().for_each(|data| data.note_left_out(&mut said, terminal));
    let threads = model.device().threads();
    terminal.note(&format!("{}: {} prompts, {threads} threads", model.name(), members.len()));

    let mut group = group_size.unwrap_or(members.len());
    if let Some(limit) = first.memory_limit.as_deref().and_then(parse_bytes) {
        let runs: Vec<(&TrainConfig, &Dataset)> =
            members.iter().zip(&data).map(|((_, config), data)| (config, &*data.train)).collect();
        let fits = fit_group_into(limit, &mut model, &runs, terminal)?;
        if fits < group {
            terminal.note(&format!("{fits} prompts in a pass fit into the memory limit"));
        }
        group = group.min(fits);
    }
    let with_data = members.iter().zip(&data);
    let trainings = with_data.map(|((_, config), data)| training(config, &model, data)).collect::<Result<Vec<_>>>()?;
    let interrupt = signals()?;
    ready()?;

    let watcher = |(name, config): &(String, TrainConfig)| Watcher::of_member(terminal, config.logging_steps, name);
    let mut watchers: Vec<Watcher<'_>> = members.iter().map(watcher).collect();
    let mut observers: Vec<&mut dyn Observer> = watchers.iter_mut().map(|watcher| watcher as _).collect();
    let results = sweep(trainings, &mut observers, group, &interrupt);
    let seconds: Vec<f64> = watchers.iter().map(|watcher| watcher.heard.duration_since(start).as_secs_f64()).collect();
    let memory = model.device().memory();
    let outcome = |(((name, config), result), seconds)| Outcome { name, config, result, seconds };
    Ok(Outcomes { members: members.into_iter().zip(results).zip(seconds).map(outcome).collect(), memory })
}
