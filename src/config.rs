//! The configuration of a training run.
//!
//! Each key of [`KEYS`] is looked for on the command line, then in the environment, then in a TOML file, then in the
//! defaults; the first to give it decides. What comes out is a [`TrainConfig`] with every value resolved, so that the
//! file saved with a run says all of it, and reading that file back gives the same run. Names follow PEFT and the
//! Hugging Face Trainer where they match.

mod checks;
mod key;
mod keys;
mod layers;
mod nearest;
mod sweep;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::data::{ExampleOptions, OnLong, PrefixCut, SpanCorruption, Template};
use crate::error::Place;
use crate::layout::{PromptMask, PromptOn};
use crate::models::ModelConfig;
use crate::{Error, Result};

pub use key::{Fallback, Key, Kind, Range};
pub use keys::KEYS;
use layers::Settings;
pub use layers::{OTHER_PREFIXES, OTHER_VARIABLES, Source, is_list};
pub use sweep::{Member, OF_THE_PASS, Sweep};

/// Everything that decides a training run. What each field means is said once, as the `help` of its [`Key`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct TrainConfig {
    pub model: PathBuf,
    pub method: Method,
    pub init_weights: Option<u64>,
    pub output_dir: PathBuf,
    pub train_file: PathBuf,
    pub eval_file: Option<PathBuf>,
    pub eval_fraction: f64,
    pub template: Option<String>,
    pub target: Option<String>,
    pub separator: String,
    pub append_eos: Option<bool>,
    pub max_length: usize,
    pub max_target_length: Option<usize>,
    pub on_long: OnLong,
    pub objective: Objective,
    pub noise_density: f64,
    pub mean_noise_span_length: f64,
    pub prefix_cut: PrefixCut,
    pub corruptions: usize,
    pub labels: Vec<String>,
    pub num_virtual_tokens: usize,
    pub prompt_on: PromptOn,
    pub prompt_mask: PromptMask,
    pub prompt_tuning_init: PromptInit,
    pub prompt_tuning_init_text: Option<String>,
    pub prompt_init_file: Option<PathBuf>,
    pub init_top_k: usize,
    pub init_range: f64,
    pub optim: Optim,
    pub learning_rate: f64,
    pub adam_beta1: f64,
    pub adam_beta2: f64,
    pub adam_epsilon: f64,
    pub weight_decay: f64,
    pub adafactor_decay_rate: f64,
    pub adafactor_clip_threshold: f64,
    pub adafactor_epsilon: f64,
    pub adafactor_scale_parameter: bool,
    pub lr_scheduler_type: Scheduler,
    pub warmup_steps: u64,
    pub max_grad_norm: f64,
    pub per_device_train_batch_size: usize,
    pub per_device_eval_batch_size: usize,
    pub gradient_accumulation_steps: usize,
    pub max_steps: Option<u64>,
    pub num_train_epochs: f64,
    pub eval_steps: Option<u64>,
    pub logging_steps: u64,
    pub save_steps: u64,
    pub early_stopping_patience: Option<u64>,
    pub metric_for_best_model: Metric,
    pub seed: u64,
    pub device: String,
    pub dtype: Precision,
    pub threads: Option<usize>,
    pub weights: Weights,
    pub recompute: RecomputePolicy,
    pub memory_limit: Option<String>,
    pub resume: Resume,
    pub report_to: Vec<Report>,
}

/// What is trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Method {
    /// A prompt; the model is frozen.
    Prompt,
    /// Every weight, on the same rows as a prompt would be.
    Full,
    /// Every weight, on texts.
    Pretrain,
}

/// What texts teach.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Objective {
    /// Each next token, of a causal model.
    NextToken,
    /// The spans that were cut out, of an encoder–decoder.
    SpanCorruption,
    /// How a text goes on, of an encoder–decoder.
    PrefixLm,
}

impl Objective {
    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::NextToken => "next_token",
            Self::SpanCorruption => "span_corruption",
            Self::PrefixLm => "prefix_lm",
        }
    }
}

/// What is computed again in the backward pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RecomputePolicy {
    /// Nothing.
    None,
    /// MLPs.
    Mlp,
    /// Layers.
    Layer,
    /// As little as fits into `memory_limit`.
    Auto,
}

/// Where the first prompt comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PromptInit {
    /// Embeddings drawn from the first entries of the vocabulary.
    SampleVocab,
    /// The embeddings of a text, repeated or cut to length.
    Text,
    /// The embeddings of the labels, then as `SampleVocab`.
    ClassLabels,
    /// Uniform numbers around 0.
    Uniform,
    /// Normal numbers, as PEFT's `RANDOM`.
    Random,
    /// An existing prompt.
    File,
}

/// The optimizer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Optim {
    /// Adam with decoupled weight decay.
    Adamw,
    /// Adafactor as T5X does it.
    Adafactor,
}

/// How the learning rate goes on after the warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scheduler {
    /// It stays.
    Constant,
    /// It falls to 0 in a line.
    Linear,
    /// It falls to 0 in half a cosine.
    Cosine,
}

/// What makes a checkpoint the best.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// The mean loss of the held-out rows; the lower the better.
    Loss,
    /// The part of rows whose label ranks first.
    Accuracy,
    /// The mean of the classes' accuracies.
    BalancedAccuracy,
    /// The mean of the classes' F1 scores.
    MacroF1,
    /// The part of rows whose generated text is the target.
    ExactMatch,
}

impl Metric {
    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Loss => "loss",
            Self::Accuracy => "accuracy",
            Self::BalancedAccuracy => "balanced_accuracy",
            Self::MacroF1 => "macro_f1",
            Self::ExactMatch => "exact_match",
        }
    }

    /// Whether a greater value is a better one.
    pub const fn greater_is_better(self) -> bool {
        !matches!(self, Self::Loss)
    }
}

/// The type to compute in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Precision {
    /// 32-bit floats.
    F32,
    /// 64-bit floats, for checks; on a CPU.
    F64,
    /// 16-bit floats with the exponent of f32; on a GPU.
    Bf16,
}

/// How weights are held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Weights {
    /// Read from the mapped file as they are stored.
    Mapped,
    /// Copied once into the type to compute in.
    Widened,
}

/// A form to write metrics in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Report {
    /// One JSON object a line.
    Jsonl,
    /// TensorBoard's event files.
    Tensorboard,
}

/// Whether to go on from a checkpoint. In TOML a boolean or a path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Resume {
    /// `true`: from the last checkpoint in `output_dir`; `false`: start anew.
    Last(bool),
    /// From this checkpoint.
    From(PathBuf),
}

/// A configuration and where each of its values came from.
pub struct Resolved {
    /// The configuration.
    pub config: TrainConfig,
    settings: Settings,
}

impl Resolved {
    fn complete(mut settings: Settings) -> Result<Self> {
        settings.complete()?;
        let config = settings.table().try_into().map_err(mismatch)?;
        let resolved = Self { config, settings };
        checks::check(&resolved)?;
        Ok(resolved)
    }

    /// The flags of a command that gives this configuration wherever it is run, as `--learning-rate=0.3`: all that does not
    /// come from the defaults.
    pub fn flags(&self) -> Vec<String> {
        let flag = |key: &Key| {
            let value = self.settings.value(key.name)?;
            (*self.source(key.name) != Source::Default).then(|| format!("{}={}", key.flag(), Key::text(value)))
        };
        KEYS.iter().filter_map(flag).collect()
    }

    /// Where the value of `key` came from; [`Source::Default`] for a name that is no key.
    pub fn source(&self, key: &str) -> &Source {
        self.settings.source(key)
    }

    /// Whether somebody chose the value of `key`. The file that a run saves has every key: there the default is no choice.
    pub fn is_chosen(&self, key: &str) -> bool {
        match self.source(key) {
            Source::Default => false,
            Source::File(..) => !self.is_default(key),
            Source::Environment | Source::Flag | Source::Sweep => true,
        }
    }

    /// Whether the value of `key` is the one it has where no layer gives one.
    pub fn is_default(&self, key: &str) -> bool {
        let value = self.settings.value(key);
        match Key::find(key).map(|known| (known, known.fallback)) {
            Some((_, Fallback::Unset)) => value.is_none(),
            Some((known, Fallback::Value(text))) => known.parse(text).ok().flatten().as_ref() == value,
            _ => false,
        }
    }

    /// The place to name in an error about the value of `key`.
    pub fn place(&self, key: &str) -> Place {
        Key::find(key).map_or_else(|| Place::item(key), |known| self.source(key).place(known))
    }
}

impl std::fmt::Debug for Resolved {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Resolved").field("config", &self.config).finish_non_exhaustive()
    }
}

impl TrainConfig {
    /// Resolves a configuration: `flags` (key and value as text) over `env` (all variables; those of other programs
    /// are passed over, see [`environment`]) over the TOML `file` over the defaults.
    ///
    /// # Errors
    /// [`Error::Config`] naming the file and line, variable or flag for a key that is not known, a value of the wrong
    /// type or range, a value that is missing, and keys that contradict each other; [`Error::Usage`] for a flag that
    /// is no key; [`Error::Input`] or [`Error::Io`] for a file that cannot be read.
    pub fn resolve(
        file: Option<&Path>,
        env: impl Iterator<Item = (String, String)>,
        flags: Vec<(String, String)>,
    ) -> Result<Resolved> {
        let mut settings = Settings::new();
        if let Some(path) = file {
            settings.read_file(path, None)?;
        }
        settings.read_environment(env)?;
        settings.read_flags(flags)?;
        Resolved::complete(settings)
    }

    /// The whole configuration as TOML that [`Self::resolve`] reads back as it is.
    ///
    /// # Errors
    /// [`Error::Config`] if a value cannot be written as TOML, as a path that is not UTF-8.
    pub fn to_toml(&self) -> Result<String> {
        toml::to_string(self).map_err(|e| Error::config(Place::default(), "values that TOML can hold", e.to_string()))
    }

    /// What [`crate::data::Dataset::load`] needs for a model of these sizes.
    ///
    /// # Errors
    /// [`Error::Config`] for a key that means nothing to this kind of model, by name, and for a template that
    /// [`Self::resolve`] would have refused.
    pub fn example_options(&self, model: &ModelConfig) -> Result<ExampleOptions> {
        let parse = |text: &Option<String>| text.as_deref().map(Template::parse).transpose();
        ExampleOptions {
            template: parse(&self.template)?,
            target: parse(&self.target)?,
            separator: self.separator.clone(),
            append_eos: self.append_eos.unwrap_or(model.is_encoder_decoder()),
            max_length: self.max_length,
            max_target_length: self.max_target_length,
            on_long: self.on_long,
            vocab_size: model.vocab_size,
        }
        .for_model(model.is_encoder_decoder())
    }

    /// Rows of the prompt that is trained: twice `num_virtual_tokens` where it stands on encoder and decoder, none where
    /// weights are trained.
    pub fn prompt_rows(&self) -> usize {
        if self.method == Method::Prompt { self.prompt_on.rows(self.num_virtual_tokens) } else { 0 }
    }

    /// How spans are cut out, for the objective of that name.
    pub fn span_corruption(&self) -> SpanCorruption {
        SpanCorruption { noise_density: self.noise_density, mean_noise_span_length: self.mean_noise_span_length }
    }

    /// The keys whose values differ between two configurations, in the order of [`KEYS`]: what a resumed run would
    /// do otherwise than the run it continues.
    ///
    /// # Errors
    /// As [`Self::to_toml`].
    pub fn differences(&self, other: &Self) -> Result<Vec<&'static str>> {
        let table = |config: &Self| {
            toml::Table::try_from(config)
                .map_err(|e| Error::config(Place::default(), "values that TOML can hold", e.to_string()))
        };
        let (ours, theirs) = (table(self)?, table(other)?);
        Ok(KEYS.iter().map(|key| key.name).filter(|&name| ours.get(name) != theirs.get(name)).collect())
    }
}

/// The table of keys and the struct disagree: a bug, which the tests look for.
fn mismatch(error: toml::de::Error) -> Error {
    Error::op("config", "the struct that the table of keys describes", error.message())
}

/// This program's variables in the environment, whatever their encoding.
pub fn environment() -> impl Iterator<Item = (String, String)> {
    std::env::vars_os().map(|(name, value)| (name.to_string_lossy().into_owned(), value.to_string_lossy().into_owned()))
}

#[cfg(test)]
#[path = "config/tests.rs"]
mod tests;
