//! Training: one caller of [`Model::losses_and_grads`], or of [`Model::loss_and_weight_grads_of_part`], with everything
//! around it that a run needs; and several runs side by side, whose prompts go through the model together.
//!
//! A run's directory:
//!
//! ```text
//! run.toml                    the resolved configuration
//! initial/ best/ final/       prompt.safetensors each; where weights are trained, best/ and final/ are models
//! checkpoint-<step>/          everything needed to go on, bit for bit
//! metrics.jsonl  tensorboard/
//! last_good/                  the prompt before it diverged, if it did
//! ```

mod lockstep;
mod moments;
mod output;
mod run;
mod subject;

use crate::checkpoint::Fingerprints;
use crate::config::{Method, Optim, Scheduler, TrainConfig};
use crate::data::Dataset;
use crate::error::{Error, Place, Result};
use crate::models::Model;
use crate::optim::{AdafactorConfig, AdamWConfig, OptimizerConfig, PARAMETER_SCALE, Schedule, ScheduleKind};
use crate::tensor::Tensor;
use crate::values::sha256_hex;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicUsize;

pub use output::refuse_to_overwrite;
use run::Run;

/// What a run is made of.
pub struct Training<'a> {
    /// The model: frozen where a prompt is trained, else one opened as trainable.
    pub model: &'a Model,
    /// Its configuration, resolved.
    pub config: &'a TrainConfig,
    /// The training rows.
    pub train: &'a Dataset,
    /// The first prompt, `[prompt_rows, d]` row after row; not looked at where weights are trained.
    pub initial: Vec<f64>,
    /// Names and values of the held-out metrics of a prompt; the configuration's `metric_for_best_model` among them.
    /// Without it the last prompt is the best.
    pub evaluate: Option<Evaluator<'a>>,
    /// Hash of the held-out rows and whatever else the evaluator depends on.
    pub evaluation_fingerprint: String,
}

/// Computes held-out metrics of a prompt.
pub type Evaluator<'a> = Box<dyn FnMut(&Tensor) -> Result<Vec<(String, f64)>> + 'a>;

/// One optimizer step, for whoever watches.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepReport {
    /// Steps taken, this one included.
    pub step: u64,
    /// Steps of the whole run.
    pub total_steps: u64,
    /// Times through the training rows, this one's part included.
    pub epoch: f64,
    /// Mean loss over the label tokens of the step's examples, in nats.
    pub loss: f64,
    /// The gradient's norm, before clipping.
    pub grad_norm: f64,
    /// The learning rate.
    pub learning_rate: f64,
    /// Examples in the step.
    pub examples: usize,
    /// Their tokens, labels included, prompt rows not.
    pub tokens: usize,
    /// Seconds it took.
    pub seconds: f64,
}

/// Hears what a run does. Every method may be left as it is.
pub trait Observer {
    /// A step was taken.
    fn step(&mut self, _report: &StepReport) {}
    /// The held-out rows were evaluated after `step` steps.
    fn evaluated(&mut self, _step: u64, _metrics: &[(String, f64)], _is_best: bool) {}
    /// A checkpoint was saved.
    fn saved(&mut self, _checkpoint: &Path) {}
}

/// Nobody watches.
impl Observer for () {}

/// Why a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ended {
    /// All steps were taken.
    Done,
    /// The metric did not improve for long enough.
    EarlyStop,
}

/// What a run came to.
#[derive(Debug, Clone)]
pub struct Summary {
    /// Steps taken, those before a resume included.
    pub steps: u64,
    /// Why it ended.
    pub ended: Ended,
    /// Loss of the last step.
    pub last_loss: Option<f64>,
    /// Name, value and step of the best evaluation.
    pub best: Option<crate::checkpoint::Best>,
    /// Where the best prompt lies, or the best model.
    pub best_path: PathBuf,
    /// Where the last prompt lies, or the last model.
    pub final_path: PathBuf,
    /// The hash of the last prompt, or of the last model's file.
    pub final_hash: String,
}

/// Runs a training, from the start or from a checkpoint (the configuration's `resume`). A signal's number in `interrupt`
/// makes it save a checkpoint and stop.
///
/// # Errors
/// [`Error::Interrupted`] after a signal; [`Error::Diverged`] for a loss, gradient or prompt that is not finite, naming the
/// rows of the step, with the last good prompt saved; [`Error::Config`] for a directory that holds another run;
/// [`Error::Input`] for a checkpoint of another run; [`Error::Io`] if nothing can be written.
pub fn train(training: Training<'_>, observer: &mut dyn Observer, interrupt: &AtomicUsize) -> Result<Summary> {
    go(training, false, observer, interrupt)
}

/// [`train`], but one that is to go on from its last checkpoint and has none begins anew.
pub(crate) fn train_or_go_on(
    training: Training<'_>,
    observer: &mut dyn Observer,
    interrupt: &AtomicUsize,
) -> Result<Summary> {
    go(training, true, observer, interrupt)
}

fn go(
    training: Training<'_>,
    may_begin: bool,
    observer: &mut dyn Observer,
    interrupt: &AtomicUsize,
) -> Result<Summary> {
    let run = Run::start(training, may_begin)?;
    let mut outcomes = lockstep::go(vec![Ok(run)], &mut [observer], 1, interrupt);
    outcomes.swap_remove(0)
}

/// Runs the trainings of several prompts side by side on one frozen model. In every round each of them takes a step; at most
/// `group_size` prompts go through the model in one pass, and each weight is read once for all of them. `observers` has one
/// for each training.
///
/// Each is the run that [`train`] would make of it, as nearly as [`Model::losses_and_grads`] says: it has its own optimizer,
/// order of examples, evaluation, early stop, directory and checkpoints. One that fails ends alone, with its error, and the others go on. One
/// that is to go on from its last checkpoint but has none begins anew. A pass that fails is taken again in halves; where it
/// was the device that failed, as for want of memory, so are the passes after it.
///
/// # Errors
/// Of each training, what [`train`] says; [`Error::Config`] for one that trains weights, or is of another model than the
/// first, or has no observer.
pub fn sweep<'a>(
    trainings: Vec<Training<'a>>,
    observers: &mut [&mut dyn Observer],
    group_size: usize,
    interrupt: &AtomicUsize,
) -> Vec<Result<Summary>> {
    let (model, watched) = (trainings.first().map(|training| training.model), observers.len());
    let start = |(index, training): (usize, Training<'a>)| {
        let refused = |key, expected, got: &str| Err(Error::config(Place::item(key), expected, got));
        if training.config.method != Method::Prompt {
            return refused("method", "prompt in a sweep", "a training of weights");
        }
        if model.is_none_or(|model| !std::ptr::eq(model, training.model)) {
            return refused("model", "one model in a sweep", "another");
        }
        if index >= watched {
            return refused("observers", "one for each training", "fewer");
        }
        Run::start(training, true)
    };
    let runs = trainings.into_iter().enumerate().map(start).collect();
    lockstep::go(runs, observers, group_size, interrupt)
}

/// The optimizer of `config`, with its constants.
pub(crate) fn optimizer_of(config: &TrainConfig) -> OptimizerConfig {
    match config.optim {
        Optim::Adamw => OptimizerConfig::AdamW(AdamWConfig {
            beta1: config.adam_beta1,
            beta2: config.adam_beta2,
            eps: config.adam_epsilon,
            weight_decay: config.weight_decay,
        }),
        Optim::Adafactor => OptimizerConfig::Adafactor(AdafactorConfig {
            decay_exponent: config.adafactor_decay_rate,
            eps: config.adafactor_epsilon,
            clip_threshold: config.adafactor_clip_threshold,
            weight_decay: config.weight_decay,
            parameter_scale: config.adafactor_scale_parameter.then_some(PARAMETER_SCALE),
            ..AdafactorConfig::default()
        }),
    }
}

impl Training<'_> {
    fn schedule(&self, total: u64) -> Schedule {
        let kind = match self.config.lr_scheduler_type {
            Scheduler::Constant => ScheduleKind::Constant,
            Scheduler::Linear => ScheduleKind::Linear,
            Scheduler::Cosine => ScheduleKind::Cosine,
        };
        Schedule { kind, lr: self.config.learning_rate, warmup: self.config.warmup_steps, total }
    }

    /// What must not change between a checkpoint and the run that goes on from it.
    pub(crate) fn fingerprints(&self) -> Result<Fingerprints> {
        /// Keys that change where results go or how fast they come, not what they are. Files count by their contents.
        const INDIFFERENT: [&str; 14] = [
            "model",
            "output_dir",
            "train_file",
            "eval_file",
            "prompt_init_file",
            "threads",
            "recompute",
            "memory_limit",
            "device",
            "resume",
            "report_to",
            "logging_steps",
            "save_steps",
            "per_device_eval_batch_size",
        ];
        let mut table = toml::Table::try_from(self.config)
            .map_err(|error| Error::config(Place::default(), "values that TOML can hold", error.to_string()))?;
        INDIFFERENT.iter().for_each(|key| drop(table.remove(*key)));
        if self.config.lr_scheduler_type == Scheduler::Constant {
            // Without a schedule to stretch, a longer run begins as a shorter one.
            ["max_steps", "num_train_epochs"].iter().for_each(|key| drop(table.remove(*key)));
        }
        let data = format!("{} {}", dataset_hash(self.train), self.evaluation_fingerprint);
        Ok(Fingerprints {
            config: sha256_hex(table.to_string().as_bytes()),
            model: self.model.fingerprint().to_string(),
            data: sha256_hex(data.as_bytes()),
        })
    }
}

/// A hash of all ids of a dataset, in order.
pub fn dataset_hash(dataset: &Dataset) -> String {
    let mut bytes = Vec::new();
    for example in &dataset.examples {
        for ids in [&example.input_ids, &example.target_ids] {
            bytes.extend((ids.len() as u64).to_le_bytes());
            bytes.extend(ids.iter().flat_map(|id| id.to_le_bytes()));
        }
    }
    sha256_hex(&bytes)
}
