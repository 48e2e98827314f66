//! Runs as they lie in their directories.

use crate::config::{KEYS, TrainConfig};
use crate::error::{Error, Place, Result};
use crate::metrics::log::{self, Line};
use std::path::{Path, PathBuf};

const CONFIG_FILE: &str = "run.toml";
const METRICS_FILE: &str = "metrics.jsonl";
/// How far below a given directory runs are looked for.
const DEPTH: usize = 4;

/// A run: its configuration and what it logged.
#[derive(Debug, Clone)]
pub struct Run {
    /// Its directory.
    pub path: PathBuf,
    /// Its configuration.
    pub config: TrainConfig,
    /// Its metrics, in the order of the file; none if it wrote no `metrics.jsonl`.
    pub lines: Vec<Line>,
    table: toml::Table,
}

/// The best evaluation of a run.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct Best {
    /// The metric that chooses.
    pub metric: &'static str,
    /// Its value.
    pub value: f64,
    /// The step it was reached at.
    pub step: u64,
}

impl Run {
    /// Reads the run in the directory `path`.
    ///
    /// # Errors
    /// [`Error::Config`] for a `run.toml` that is not a configuration; [`Error::Input`] naming the line of `metrics.jsonl`
    /// that is damaged; [`Error::Io`] where the system refuses.
    pub fn read(path: &Path) -> Result<Self> {
        let config = TrainConfig::resolve(Some(&path.join(CONFIG_FILE)), std::iter::empty(), Vec::new())?.config;
        let table = toml::Table::try_from(&config)
            .map_err(|error| Error::config(Place::file(path), "values that TOML can hold", error.to_string()))?;
        let metrics = path.join(METRICS_FILE);
        let lines = if metrics.exists() { log::read(&metrics)? } else { Vec::new() };
        Ok(Self { path: path.to_path_buf(), config, lines, table })
    }

    /// What it is called: its path.
    pub fn name(&self) -> String {
        self.path.display().to_string()
    }

    /// The value of a key of its configuration, in words.
    pub fn value(&self, key: &str) -> String {
        match self.table.get(key) {
            None => "none".to_owned(),
            Some(toml::Value::String(text)) => text.clone(),
            Some(value) => value.to_string(),
        }
    }

    /// The steps that it logged.
    pub fn steps(&self) -> u64 {
        self.lines.iter().map(|line| line.step).max().unwrap_or(0)
    }

    /// The best evaluation by the run's own metric; of equals the first.
    pub fn best(&self) -> Option<Best> {
        let metric = self.config.metric_for_best_model;
        let sign = if metric.greater_is_better() { 1.0 } else { -1.0 };
        let mut best: Option<Best> = None;
        for (step, value) in self.curve("eval", metric.name()) {
            if value.is_finite() && best.is_none_or(|best| sign * value > sign * best.value) {
                best = Some(Best { metric: metric.name(), value, step: step as u64 });
            }
        }
        best
    }

    /// The training loss of the last line that has one.
    pub fn last_loss(&self) -> Option<f64> {
        self.curve("train", "loss").last().map(|&(_, loss)| loss)
    }

    /// Seconds between the first and the last line of metrics.
    pub fn seconds(&self) -> Option<f64> {
        let (first, last) = (self.lines.first()?, self.lines.last()?);
        (self.lines.len() > 1).then_some(last.time - first.time)
    }

    /// Step and value of a metric of `split`, where it was logged.
    pub fn curve(&self, split: &str, metric: &str) -> Vec<(f64, f64)> {
        let lines = self.lines.iter().filter(|line| line.split == split);
        lines.filter_map(|line| Some((line.step as f64, line.metric(metric)?))).collect()
    }
}

/// The runs in `paths`: each is a run's directory, or one that holds runs, as those of sweeps and experiments do. In the order
/// given, below a directory in that of their names; one that is named twice stands once.
///
/// # Errors
/// [`Error::Input`] for a path without a run; those of [`Run::read`].
pub fn find(paths: &[PathBuf]) -> Result<Vec<Run>> {
    let mut found: Vec<PathBuf> = Vec::new();
    for path in paths {
        let mut below = Vec::new();
        if path.is_dir() {
            collect(path, DEPTH, &mut below)?;
        }
        if below.is_empty() {
            let got = if path.exists() { "neither" } else { "nothing there" };
            return Err(Error::input(Place::file(path), "a run's directory, or one that holds runs", got)
                .hint("a run's directory is the --output-dir of a training; it holds run.toml"));
        }
        for run in below {
            if !found.contains(&run) {
                found.push(run);
            }
        }
    }
    found.iter().map(|path| Run::read(path)).collect()
}

/// The runs at and below `path`; nothing inside a run is another.
fn collect(path: &Path, depth: usize, found: &mut Vec<PathBuf>) -> Result<()> {
    if path.join(CONFIG_FILE).is_file() {
        found.push(path.to_path_buf());
        return Ok(());
    }
    if depth == 0 {
        return Ok(());
    }
    let failed = |error| Error::io(path, "read", error);
    let mut inside = Vec::new();
    for entry in std::fs::read_dir(path).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        // Links are not followed: they may lead in a circle.
        if entry.file_type().map_err(failed)?.is_dir() {
            inside.push(entry.path());
        }
    }
    inside.sort_by_key(|path| natural(&path.to_string_lossy()));
    inside.iter().try_for_each(|path| collect(path, depth - 1, found))
}

/// A name's parts for sorting, words and the numbers behind them, so that 20 stands before 100.
fn natural(name: &str) -> Vec<(String, u64)> {
    let mut parts = Vec::new();
    let mut rest = name;
    while !rest.is_empty() {
        let word = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        let end = rest[word..].find(|c: char| !c.is_ascii_digit()).map_or(rest.len(), |end| word + end);
        parts.push((rest[..word].to_owned(), rest[word..end].parse().unwrap_or(u64::MAX)));
        rest = &rest[end..];
    }
    parts
}

/// The keys in which the runs' configurations differ, in the order of [`KEYS`]; where they write is no difference.
pub fn varied(runs: &[Run]) -> Vec<&'static str> {
    let differs = |key: &str| runs.iter().any(|run| run.table.get(key) != runs[0].table.get(key));
    let names = KEYS.iter().map(|key| key.name).filter(|key| !["output_dir", "resume"].contains(key));
    names.filter(|key| differs(key)).collect()
}
