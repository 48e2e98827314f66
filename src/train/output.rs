//! What a run writes: prompts, metrics, checkpoints.

use super::Training;
use crate::checkpoint::{self, Best, Checkpoint};
use crate::config::{Method, Report, Resume};
use crate::error::{Error, Place, Result};
use crate::metrics::{EventWriter, MetricsLog};
use crate::models::{MODEL_FILE, Model};
use crate::prompt::file::PROMPT_FILE;
use crate::prompt::{PeftTask, PromptFile, TASK};
use crate::storage::{atomic_dir, atomic_write, existing_dir, file_sha256};
use crate::tensor::Tensor;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Checkpoints kept: the last, and the one before it should the last be damaged.
const KEEP: usize = 2;
const CONFIG_FILE: &str = "run.toml";
/// Beside the best model: metric, value and step.
const BEST_FILE: &str = "best.json";
const METRICS_FILE: &str = "metrics.jsonl";

/// The directory of a run, opened for writing.
pub(super) struct Output {
    dir: PathBuf,
    log: Option<MetricsLog>,
    events: Option<EventWriter>,
    meta: BTreeMap<String, String>,
    rows: usize,
    cols: usize,
}

/// Refuses a directory that a run has written to, unless it is to be resumed.
///
/// # Errors
/// [`Error::Config`], with advice.
pub fn refuse_to_overwrite(dir: &Path, resume: &Resume) -> Result<()> {
    if *resume == Resume::Last(false) && holds_a_run(dir) {
        let place = Place::file(dir).of("output_dir");
        return Err(Error::config(place, "a new or empty directory", "one that holds a run")
            .hint("take another --output-dir, or --resume true to go on"));
    }
    Ok(())
}

fn holds_a_run(dir: &Path) -> bool {
    [CONFIG_FILE, METRICS_FILE].iter().any(|name| dir.join(name).exists())
}

/// Refuses to go on from `checkpoint`, found in `from`, in a directory that holds another run.
fn refuse_another_run(dir: &Path, from: &Path, checkpoint: &Checkpoint) -> Result<()> {
    let is_inside = from.canonicalize().is_ok_and(|from| {
        let parent = from.parent().map(Path::to_path_buf);
        dir.canonicalize().is_ok_and(|dir| parent == Some(dir))
    });
    // A checkpoint that was moved away is known by its run's other checkpoints; damaged ones tell nothing.
    let is_known = || -> Result<bool> {
        let loaded = checkpoint::list(dir)?.into_iter().filter_map(|(_, path)| Checkpoint::load(path).ok());
        Ok(loaded.map(|other| other.fingerprints).any(|other| other == checkpoint.fingerprints))
    };
    if is_inside || !holds_a_run(dir) || is_known()? {
        return Ok(());
    }
    let got = format!("one that holds another run than that of {}", from.display());
    Err(Error::config(Place::file(dir).of("output_dir"), "a new or empty directory, or the checkpoint's own", got)
        .hint("take another --output-dir"))
}

impl Output {
    /// Opens the directory of a new run, or of one that goes on after `step` steps.
    pub(super) fn open(training: &Training<'_>, resumed_at: Option<u64>) -> Result<Self> {
        let (config, model) = (training.config, training.model);
        let dir = config.output_dir.clone();
        std::fs::create_dir_all(&dir).map_err(|error| Error::io(&dir, "create", error))?;
        if resumed_at.is_none() {
            refuse_to_overwrite(&dir, &config.resume)?;
        }
        atomic_write(dir.join(CONFIG_FILE), config.to_toml()?.as_bytes())?;
        let wants = |report| config.report_to.contains(&report);
        let log = wants(Report::Jsonl).then(|| match resumed_at {
            Some(step) => MetricsLog::resume(dir.join(METRICS_FILE), step),
            None => MetricsLog::create(dir.join(METRICS_FILE)),
        });
        let events = wants(Report::Tensorboard)
            .then(|| EventWriter::create(dir.join("tensorboard"), resumed_at.map(|step| step + 1)));
        let mut meta = BTreeMap::from([
            ("base_model".to_string(), model.name().to_string()),
            ("seed".to_string(), config.seed.to_string()),
        ]);
        if model.config().is_encoder_decoder() {
            meta.insert("prompt_on".to_string(), config.prompt_on.name().to_string());
            meta.insert("prompt_mask".to_string(), config.prompt_mask.name().to_string());
            // For `softprompt export`, which may not see the model.
            meta.insert(TASK.to_string(), PeftTask::Seq2SeqLm.name().to_string());
        }
        Ok(Self {
            dir,
            log: log.transpose()?,
            events: events.transpose()?,
            meta,
            rows: config.prompt_rows(),
            cols: model.config().hidden_size,
        })
    }

    /// Where the prompt called `name` lies.
    pub(super) fn prompt_path(&self, name: &str) -> PathBuf {
        self.dir.join(name).join(PROMPT_FILE)
    }

    /// The prompt as a file holds it.
    pub(super) fn prompt(&self, values: &Tensor, step: u64) -> Result<PromptFile> {
        let mut meta = self.meta.clone();
        meta.insert("step".to_string(), step.to_string());
        PromptFile::new(self.rows, self.cols, values.to_values()?, meta)
    }

    /// Saves a prompt under `name`, and gives its hash.
    pub(super) fn save_prompt(&self, name: &str, values: &Tensor, step: u64) -> Result<String> {
        let prompt = self.prompt(values, step)?;
        prompt.write(self.prompt_path(name))?;
        Ok(prompt.hash())
    }

    /// Where the model called `name` lies.
    pub(super) fn model_path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Saves a model under `name`, and gives the hash of its weights' file.
    pub(super) fn save_model(&self, name: &str, model: &Model) -> Result<String> {
        let dir = self.model_path(name);
        model.save_pretrained(&dir)?;
        file_sha256(dir.join(MODEL_FILE))
    }

    /// Makes the model the best, and says beside it of which evaluation.
    pub(super) fn put_best_model(&self, model: &Model, best: &Best) -> Result<()> {
        let dir = self.model_path("best");
        let stated = serde_json::json!({"metric": best.metric, "value": best.value, "step": best.step});
        atomic_dir(&dir, |to| {
            model.save_into(to)?;
            atomic_write(to.join(BEST_FILE), stated.to_string().as_bytes())
        })
    }

    /// The best evaluation, if its model is still the one in `best/`; a run that goes on from an earlier checkpoint looks
    /// for the best anew.
    pub(super) fn known_best(&self, best: Option<Best>) -> Option<Best> {
        let text = std::fs::read(self.model_path("best").join(BEST_FILE)).unwrap_or_default();
        let stated: serde_json::Value = serde_json::from_slice(&text).unwrap_or_default();
        best.filter(|best| stated["step"] == best.step)
    }

    /// Makes `best` the best prompt: at a resume the directory may hold one of a later step than the checkpoint's, or none.
    pub(super) fn put_best(&self, best: Option<&PromptFile>) -> Result<()> {
        let path = self.prompt_path("best");
        match best {
            Some(prompt) => prompt.write(path),
            None if path.exists() => std::fs::remove_file(&path).map_err(|error| Error::io(&path, "remove", error)),
            None => Ok(()),
        }
    }

    /// Writes metrics of `split` after `step` steps.
    pub(super) fn log(&mut self, step: u64, split: &str, metrics: &[(&str, f64)]) -> Result<()> {
        if let Some(log) = &mut self.log {
            log.log(step, split, metrics)?;
        }
        if let Some(events) = &mut self.events {
            let named: Vec<(String, f64)> =
                metrics.iter().map(|&(name, value)| (format!("{split}/{name}"), value)).collect();
            let named: Vec<(&str, f64)> = named.iter().map(|(name, value)| (name.as_str(), *value)).collect();
            events.scalars(step, &named)?;
        }
        Ok(())
    }

    /// Saves a checkpoint, with what `others` writes into it, and drops old ones.
    pub(super) fn save(&self, checkpoint: &Checkpoint, others: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
        if let Some(log) = &self.log {
            log.sync()?;
        }
        let path = checkpoint.save_with(&self.dir, others)?;
        checkpoint::prune(&self.dir, KEEP, checkpoint.step)?;
        Ok(path)
    }
}

/// The checkpoint to go on from, if there is to be one. With `may_begin` there need not be one.
pub(super) fn to_resume(training: &Training<'_>, may_begin: bool) -> Result<Option<(Checkpoint, PathBuf)>> {
    let run_dir = &training.config.output_dir;
    let last = |dir: &Path| if may_begin && !dir.exists() { Ok(None) } else { checkpoint::latest(dir) };
    let dir = match &training.config.resume {
        Resume::Last(false) => return Ok(None),
        Resume::From(dir) => dir.clone(),
        Resume::Last(true) => match last(run_dir)? {
            Some(dir) => dir,
            None if may_begin => return Ok(None),
            None => {
                return Err(Error::input(Place::file(run_dir), "a checkpoint to resume from", "none")
                    .hint("leave out --resume to start a new run"));
            }
        },
    };
    let found = Checkpoint::load(&dir)?;
    let shape = (training.config.prompt_rows(), training.model.config().hidden_size);
    let prompt = (training.config.method == Method::Prompt).then_some(shape);
    found.expect(&training.fingerprints()?, prompt).map_err(|error| error.in_file(&dir))?;
    refuse_another_run(&training.config.output_dir, &dir, &found)?;
    Ok(Some((found, existing_dir(dir))))
}
