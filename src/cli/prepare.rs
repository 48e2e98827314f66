//! What a run begins with: the model, the rows, the first prompt, the held-out evaluation. Every command that trains
//! begins here.

use super::Terminal;
use super::eval::{Limits, generated};
use super::options::{encoder, left_out, longest};
use super::texts::Texts;
use crate::config::{Method, Metric, Precision, PromptInit, RecomputePolicy, TrainConfig, Weights};
use crate::data::{Dataset, Example, ExampleOptions, TextEncoder};
use crate::device::{Device, shown_bytes};
use crate::dtype::DType;
use crate::error::{Error, Place, Result};
use crate::eval::{Labels, Score, mean_loss, rank};
use crate::metrics::{Normalise, exact_match_rate};
use crate::models::{Model, ModelOptions, Recompute, WeightStorage};
use crate::optim::WeightOptimizer;
use crate::profile::{Setup, Stream, choose, largest_batch, predict};
use crate::prompt::{Init, PromptFile, initial_prompt};
use crate::tensor::Tensor;
use crate::train::{Training, dataset_hash, optimizer_of};
use crate::values::sha256_hex;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The model of a configuration, opened on its device.
pub(super) fn open_model(config: &TrainConfig) -> Result<Model> {
    let device = Device::named(&config.device, config.threads)?;
    let dtype = match config.dtype {
        Precision::F32 => DType::F32,
        Precision::F64 => DType::F64,
        Precision::Bf16 => DType::BF16,
    };
    let weights = if config.weights == Weights::Widened { WeightStorage::Widened } else { WeightStorage::Mapped };
    let recompute = match config.recompute {
        RecomputePolicy::None | RecomputePolicy::Auto => Recompute::None,
        RecomputePolicy::Mlp => Recompute::Mlp,
        RecomputePolicy::Layer => Recompute::Layer,
    };
    let trainable = config.method != Method::Prompt;
    let init_weights = config.init_weights;
    let (prompt_on, prompt_mask) = (config.prompt_on, config.prompt_mask);
    let options = ModelOptions { dtype, weights, recompute, trainable, prompt_on, prompt_mask, init_weights };
    Model::open(&config.model, &device, options)
}

/// Data files that were read. Runs that want the same rows share them.
#[derive(Default)]
pub(super) struct Files(Vec<File>);

struct File {
    path: PathBuf,
    texts: Option<Texts>,
    options: ExampleOptions,
    rows: Arc<Dataset>,
}

impl Files {
    fn load(
        &mut self,
        path: &Path,
        texts: Option<Texts>,
        options: &ExampleOptions,
        model: &Model,
    ) -> Result<Arc<Dataset>> {
        let is_same = |file: &&File| file.path == path && file.texts == texts && file.options == *options;
        if let Some(file) = self.0.iter().find(is_same) {
            return Ok(Arc::clone(&file.rows));
        }
        let rows = Arc::new(match &texts {
            Some(texts) => model.device().run(|| texts.load(path, options, model.require_tokenizer()?))?,
            None => Dataset::load(path, options, encoder(model))?,
        });
        let (path, options) = (path.to_path_buf(), options.clone());
        self.0.push(File { path, texts, options, rows: Arc::clone(&rows) });
        Ok(rows)
    }
}

/// The rows of a run.
pub(super) struct Data {
    pub(super) train: Arc<Dataset>,
    pub(super) held_out: Option<Arc<Dataset>>,
    pub(super) options: ExampleOptions,
}

impl Data {
    /// The rows that `config` names, for `model`.
    pub(super) fn load(config: &TrainConfig, model: &Model, files: &mut Files) -> Result<Self> {
        let limit = model.config().max_position_embeddings;
        let prompt_rows = config.prompt_rows();
        if prompt_rows >= limit {
            let place = Place::item("num_virtual_tokens");
            let expected = format!("fewer than {limit}, the model's positions");
            return Err(Error::config(place, expected, prompt_rows.to_string())
                .hint("prompt and text share the model's positions"));
        }
        let mut options = config.example_options(model.config())?;
        options.max_length = longest(model, prompt_rows, Some(config.max_length));
        let texts = Texts::of(config, model)?;
        let all = files.load(&config.train_file, texts, &options, model)?;
        let (train, held_out) = match &config.eval_file {
            Some(path) => (all, Some(files.load(path, texts.map(Texts::held_out), &options, model)?)),
            None if config.eval_fraction > 0.0 => {
                let all = Arc::unwrap_or_clone(all);
                let (train, held_out) = all.split(config.eval_fraction, config.seed)?;
                (Arc::new(train), Some(Arc::new(held_out)))
            }
            None => (all, None),
        };
        Ok(Self { train, held_out, options })
    }

    /// Says what was left out or cut, once of each file in `said`.
    pub(super) fn note_left_out(&self, said: &mut Vec<String>, terminal: &Terminal) {
        for text in [Some(&self.train), self.held_out.as_ref()].into_iter().flatten().filter_map(|rows| left_out(rows))
        {
            if !said.contains(&text) {
                terminal.note(&text);
                said.push(text);
            }
        }
    }
}

/// The training of `config` on `model`, with its `data`.
pub(super) fn training<'a>(config: &'a TrainConfig, model: &'a Model, data: &'a Data) -> Result<Training<'a>> {
    let initial = match config.method {
        Method::Prompt => first_prompt(config, model, data)?,
        Method::Full | Method::Pretrain => Vec::new(),
    };
    let held_out = data.held_out.as_deref();
    let evaluation = held_out.map(|held_out| Evaluation::new(config, model, held_out, &data.options)).transpose()?;
    Ok(Training {
        model,
        config,
        train: &data.train,
        initial,
        evaluation_fingerprint: evaluation.as_ref().map(Evaluation::fingerprint).unwrap_or_default(),
        evaluate: evaluation.map(|evaluation| Box::new(move |prompt: &Tensor| evaluation.metrics(prompt)) as _),
    })
}

/// The batch of a run that needs the most, as even examples.
struct Largest {
    examples: usize,
    tokens: usize,
    labels: usize,
}

impl Largest {
    fn of(config: &TrainConfig, train_set: &Dataset) -> Self {
        let examples = config.per_device_train_batch_size.min(train_set.examples.len()).max(1);
        let mean_of_most = |size: fn(&Example) -> usize| {
            let mut sizes: Vec<usize> = train_set.examples.iter().map(size).collect();
            sizes.sort_unstable_by(|a, b| b.cmp(a));
            sizes[..examples].iter().sum::<usize>().div_ceil(examples)
        };
        let (tokens, labels) = (mean_of_most(Example::tokens), mean_of_most(|example| example.target_ids.len()));
        Self { examples, tokens, labels }
    }

    fn stream(&self, config: &TrainConfig) -> Stream {
        Stream::even(config.prompt_rows(), self.examples, self.tokens, self.labels)
    }
}

/// How many of the runs fit into a pass of `limit` bytes, whichever they are, after choosing what to recompute for the
/// largest of them, or a refusal where not even that one fits.
pub(super) fn fit_group_into(
    limit: u64,
    model: &mut Model,
    runs: &[(&TrainConfig, &Dataset)],
    terminal: &Terminal,
) -> Result<usize> {
    let mut streams: Vec<Stream> =
        runs.iter().map(|(config, train_set)| Largest::of(config, train_set).stream(config)).collect();
    let Some(most) = (0..runs.len()).max_by_key(|&at| streams[at].rows) else { return Ok(1) };
    fit_into(limit, model, runs[most].0, runs[most].1, terminal)?;
    streams.sort_unstable_by_key(|stream| std::cmp::Reverse(stream.rows));
    let (setup, recompute) = (Setup::of(model), model.recompute());
    let fits = |count: &usize| predict(&setup, &Stream::together(&streams[..*count]), recompute).total() <= limit;
    Ok((1..=runs.len()).rev().find(fits).unwrap_or(1))
}

/// Chooses what to recompute so that a step on the longest examples fits into `limit` bytes, or refuses.
pub(super) fn fit_into(
    limit: u64,
    model: &mut Model,
    config: &TrainConfig,
    train_set: &Dataset,
    terminal: &Terminal,
) -> Result<()> {
    let (prompt_rows, largest) = (config.prompt_rows(), Largest::of(config, train_set));
    let Largest { examples, tokens, labels } = largest;
    let mut setup = Setup::of(model);
    setup.state_bytes = Some(WeightOptimizer::state_bytes_of(&optimizer_of(config), model.parameters()));
    if config.recompute == RecomputePolicy::Auto {
        let choice = choose(&setup, prompt_rows, examples, tokens, labels, limit)?;
        let need = shown_bytes(choice.prediction.total());
        terminal.note(&format!("recompute {}: a step is predicted to need {need}", choice.recompute.name()));
        model.set_recompute(choice.recompute);
        return Ok(());
    }
    let recompute = model.recompute();
    let need = predict(&setup, &largest.stream(config), recompute).total();
    if need <= limit {
        return Ok(());
    }
    let fits = largest_batch(&setup, prompt_rows, tokens, labels, recompute, limit);
    let expected = format!("at least {} for a batch of {examples}", shown_bytes(need));
    let hint = match fits {
        0 => "not even one example fits: try --recompute auto".to_string(),
        _ => format!("a batch of {fits} fits, or try --recompute auto"),
    };
    Err(Error::config(Place::item("memory_limit"), expected, shown_bytes(limit)).hint(hint))
}

fn first_prompt(config: &TrainConfig, model: &Model, data: &Data) -> Result<Vec<f64>> {
    let top_k = config.init_top_k;
    let (labels, file);
    let init = match config.prompt_tuning_init {
        PromptInit::SampleVocab => Init::SampleVocab { top_k },
        PromptInit::Text => Init::Text(config.prompt_tuning_init_text.as_deref().unwrap_or_default()),
        PromptInit::ClassLabels => {
            labels = labels_of(config, model, &data.train, &data.options)?;
            Init::ClassLabels { labels: labels.ids(), top_k }
        }
        PromptInit::Uniform => Init::Uniform { range: config.init_range },
        PromptInit::Random => Init::Random,
        PromptInit::File => {
            file = PromptFile::read(config.prompt_init_file.as_deref().unwrap_or(Path::new("")))?;
            Init::File(&file)
        }
    };
    initial_prompt(model, config.prompt_rows(), init, config.seed)
}

/// The labels of a task: those given, else those found in `dataset`.
pub(super) fn labels_of(
    config: &TrainConfig,
    model: &Model,
    dataset: &Dataset,
    options: &ExampleOptions,
) -> Result<Labels> {
    let encoder = encoder(model).map(|tokenizer| TextEncoder::new(tokenizer, options)).transpose()?;
    match encoder {
        Some(encoder) if !config.labels.is_empty() => Labels::encode(&config.labels, &encoder),
        encoder => Labels::of(dataset, encoder.as_ref()),
    }
}

/// Held-out evaluation by the metric that chooses the best prompt: ranking and generating cost more than the loss.
struct Evaluation<'a> {
    model: &'a Model,
    dataset: &'a Dataset,
    batch_size: usize,
    metric: Metric,
    labels: Option<Labels>,
}

impl<'a> Evaluation<'a> {
    /// New tokens that are generated for an exact match, beyond the longest target.
    const SPARE_TOKENS: usize = 4;

    fn new(config: &TrainConfig, model: &'a Model, dataset: &'a Dataset, options: &ExampleOptions) -> Result<Self> {
        if dataset.examples.is_empty() {
            return Err(Error::input(Place::file(&dataset.path), "at least one held-out row", "none"));
        }
        let metric = config.metric_for_best_model;
        let ranks = matches!(metric, Metric::Accuracy | Metric::BalancedAccuracy | Metric::MacroF1);
        let labels = ranks.then(|| labels_of(config, model, dataset, options)).transpose()?;
        Ok(Self { model, dataset, batch_size: config.per_device_eval_batch_size, metric, labels })
    }

    fn fingerprint(&self) -> String {
        let labels = format!("{:?}", self.labels.as_ref().map(Labels::ids));
        format!("{} {}", dataset_hash(self.dataset), sha256_hex(labels.as_bytes()))
    }

    fn metrics(&self, prompt: &Tensor) -> Result<Vec<(String, f64)>> {
        let quiet = &mut |_, _| ();
        let mut metrics = Vec::new();
        if let Some(labels) = &self.labels {
            let found = rank(self.model, prompt, self.dataset, labels, Score::Sum, self.batch_size, quiet)?;
            metrics.push(("loss", found.loss));
            metrics.push(("accuracy", found.accuracy));
            metrics.push(("balanced_accuracy", found.balanced_accuracy));
            metrics.push(("macro_f1", found.macro_f1));
        } else {
            metrics.push(("loss", mean_loss(self.model, prompt, self.dataset, self.batch_size, quiet)?));
        }
        if self.metric == Metric::ExactMatch {
            let longest = self.dataset.examples.iter().map(|example| example.target_ids.len()).max().unwrap_or(0);
            let limits = Limits { new_tokens: longest + Self::SPARE_TOKENS, stops: &[] };
            let texts = generated(self.model, prompt, self.dataset, self.batch_size, limits, |_, _| ())?;
            let pairs = texts.iter().map(|(target, text)| (text.as_str(), target.as_str()));
            metrics.push(("exact_match", exact_match_rate(pairs, Normalise::Trim)));
        }
        Ok(metrics.into_iter().map(|(name, value)| (name.to_string(), value)).collect())
    }
}
