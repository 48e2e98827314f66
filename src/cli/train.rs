//! `softprompt train`: a run from its configuration to its summary. The flags come from the table of keys.

use super::Terminal;
use super::eval::{Limits, generated};
use super::options::{encoder, left_out, longest};
use crate::config::{KEYS, Method, Metric, Precision, PromptInit, RecomputePolicy, TrainConfig, Weights, environment};
use crate::data::{Dataset, Example, PackOptions, TextEncoder};
use crate::device::{Device, Kind, parse_bytes, shown_bytes};
use crate::dtype::DType;
use crate::error::{Error, Place, Result};
use crate::eval::{Labels, Score, mean_loss, rank};
use crate::metrics::{Normalise, exact_match_rate};
use crate::models::{Model, ModelOptions, Recompute, WeightStorage};
use crate::profile::{Setup, Stream, choose, largest_batch, predict};
use crate::prompt::{Init, PromptFile, initial_prompt};
use crate::tensor::Tensor;
use crate::train::{Observer, StepReport, Summary, Training, dataset_hash, refuse_to_overwrite, train};
use crate::values::sha256_hex;
use clap::{Arg, ArgAction, ArgMatches};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::json;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::time::Instant;

pub(super) fn command(command: clap::Command) -> clap::Command {
    let config = Arg::new("config")
        .long("config")
        .value_name("FILE")
        .env("SOFTPROMPT_CONFIG")
        .help("A TOML file of these keys, with _ for -; flags and SOFTPROMPT_* variables count before it");
    let flags = KEYS.iter().map(|key| {
        Arg::new(key.name)
            .long(key.name.replace('_', "-"))
            .value_name(key.value_name)
            .help(key.help)
            .action(ArgAction::Append)
            .allow_hyphen_values(true)
    });
    command.about("Tune a prompt, or train a model's weights").arg(config).args(flags)
}

/// The flags as key and value; a repeated list flag is one list.
fn flags(matches: &ArgMatches) -> Result<Vec<(String, String)>> {
    let mut flags = Vec::new();
    for key in KEYS {
        let Some(values) = matches.get_many::<String>(key.name) else { continue };
        let values: Vec<&String> = values.collect();
        let text = match values.as_slice() {
            [one] => (*one).clone(),
            many if crate::config::is_list(key) => json!(many).to_string(),
            many => {
                return Err(Error::usage(Place::item(key.flag()), "the flag once", format!("{} times", many.len())));
            }
        };
        flags.push((key.name.to_string(), text));
    }
    Ok(flags)
}

pub(super) fn run(matches: &ArgMatches, terminal: &Terminal) -> Result<()> {
    let start = Instant::now();
    let file = matches.get_one::<String>("config").map(PathBuf::from);
    let config = TrainConfig::resolve(file.as_deref(), environment(), flags(matches)?)?.config;
    refuse_to_overwrite(&config.output_dir, &config.resume)?;
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
    let mut model = Model::open(
        &config.model,
        &device,
        ModelOptions { dtype, weights, recompute, trainable, init_weights, ..Default::default() },
    )?;

    let limit = model.config().max_position_embeddings;
    let prompt_rows = if trainable { 0 } else { config.num_virtual_tokens };
    if prompt_rows >= limit {
        let place = Place::item("num_virtual_tokens");
        let expected = format!("fewer than {limit}, the model's positions");
        return Err(Error::config(place, expected, config.num_virtual_tokens.to_string())
            .hint("prompt and text share the model's positions"));
    }
    let mut options = config.example_options(model.config().vocab_size)?;
    options.max_length = longest(&model, prompt_rows, Some(config.max_length));
    let load = |path: &Path| match config.method {
        Method::Pretrain => {
            let (template, max_length) = (options.template.clone(), options.max_length);
            let pack = PackOptions { template, max_length, vocab_size: options.vocab_size };
            device.run(|| Dataset::pack(path, &pack, model.require_tokenizer()?))
        }
        Method::Prompt | Method::Full => Dataset::load(path, &options, encoder(&model)),
    };
    let all = load(&config.train_file)?;
    let (train_set, held_out) = match &config.eval_file {
        Some(path) => (all, Some(load(path)?)),
        None if config.eval_fraction > 0.0 => {
            let (train_set, held_out) = all.split(config.eval_fraction, config.seed)?;
            (train_set, Some(held_out))
        }
        None => (all, None),
    };
    for dataset in [Some(&train_set), held_out.as_ref()].into_iter().flatten() {
        left_out(dataset).iter().for_each(|text| terminal.note(text));
    }
    let eval_rows = held_out.as_ref().map_or(0, |dataset| dataset.examples.len());
    terminal.note(&format!(
        "{}: {} training rows, {eval_rows} held-out rows, {} threads",
        model.name(),
        train_set.examples.len(),
        device.threads()
    ));

    if let Some(limit) = config.memory_limit.as_deref().and_then(parse_bytes) {
        fit_into(limit, &mut model, &config, &train_set, terminal)?;
    }
    let model = model;
    let initial = match config.method {
        Method::Prompt => first_prompt(&config, &model, &train_set, &options)?,
        Method::Full | Method::Pretrain => Vec::new(),
    };
    let mut evaluator = match &held_out {
        Some(held_out) => Some(Evaluation::new(&config, &model, held_out, &options)?),
        None => None,
    };
    let evaluation_fingerprint = evaluator.as_ref().map(Evaluation::fingerprint).unwrap_or_default();
    let mut evaluate = evaluator.as_mut().map(|evaluation| move |prompt: &Tensor| evaluation.metrics(prompt));
    let training = Training {
        model: &model,
        config: &config,
        train: &train_set,
        initial,
        evaluate: evaluate.as_mut().map(|evaluate| evaluate as _),
        evaluation_fingerprint,
    };
    let interrupt = signals()?;
    let mut watcher = Watcher::new(terminal, config.logging_steps);
    let outcome = train(training, &mut watcher, &interrupt);
    watcher.bar.finish_and_clear();
    let summary = outcome.inspect_err(|error| {
        if matches!(error, Error::Interrupted { .. }) {
            terminal.note("interrupted; a checkpoint is saved: go on with --resume true");
        }
    })?;
    finish(&summary, config.method, &device, start, terminal)
}

/// Chooses what to recompute so that a step on the longest examples fits into `limit` bytes, or refuses.
fn fit_into(
    limit: u64,
    model: &mut Model,
    config: &TrainConfig,
    train_set: &Dataset,
    terminal: &Terminal,
) -> Result<()> {
    let examples = config.per_device_train_batch_size.min(train_set.examples.len()).max(1);
    // The batch that needs the most, as even examples.
    let mean_of_most = |size: fn(&Example) -> usize| {
        let mut sizes: Vec<usize> = train_set.examples.iter().map(size).collect();
        sizes.sort_unstable_by(|a, b| b.cmp(a));
        sizes[..examples].iter().sum::<usize>().div_ceil(examples)
    };
    let (tokens, labels) = (mean_of_most(Example::tokens), mean_of_most(|example| example.target_ids.len()));
    let prompt_rows = if config.method == Method::Prompt { config.num_virtual_tokens } else { 0 };
    let setup = Setup::of(model);
    if config.recompute == RecomputePolicy::Auto {
        let choice = choose(&setup, prompt_rows, examples, tokens, labels, limit)?;
        let need = shown_bytes(choice.prediction.total());
        terminal.note(&format!("recompute {}: a step is predicted to need {need}", choice.recompute.name()));
        model.set_recompute(choice.recompute);
        return Ok(());
    }
    let recompute = model.recompute();
    let need = predict(&setup, &Stream::even(prompt_rows, examples, tokens, labels), recompute).total();
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

fn first_prompt(
    config: &TrainConfig,
    model: &Model,
    train_set: &Dataset,
    options: &crate::data::ExampleOptions,
) -> Result<Vec<f64>> {
    let top_k = config.init_top_k;
    let (labels, file);
    let init = match config.prompt_tuning_init {
        PromptInit::SampleVocab => Init::SampleVocab { top_k },
        PromptInit::Text => Init::Text(config.prompt_tuning_init_text.as_deref().unwrap_or_default()),
        PromptInit::ClassLabels => {
            labels = labels_of(config, model, train_set, options)?;
            Init::ClassLabels { labels: labels.ids(), top_k }
        }
        PromptInit::Uniform => Init::Uniform { range: config.init_range },
        PromptInit::Random => Init::Random,
        PromptInit::File => {
            file = PromptFile::read(config.prompt_init_file.as_deref().unwrap_or(Path::new("")))?;
            Init::File(&file)
        }
    };
    initial_prompt(model, config.num_virtual_tokens, init, config.seed)
}

fn labels_of(
    config: &TrainConfig,
    model: &Model,
    dataset: &Dataset,
    options: &crate::data::ExampleOptions,
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

    fn new(
        config: &TrainConfig,
        model: &'a Model,
        dataset: &'a Dataset,
        options: &crate::data::ExampleOptions,
    ) -> Result<Self> {
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

    fn metrics(&mut self, prompt: &Tensor) -> Result<Vec<(String, f64)>> {
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

/// A number that a signal sets. The second signal ends the process at once, as it would have without us.
fn signals() -> Result<Arc<AtomicUsize>> {
    let number = Arc::new(AtomicUsize::new(0));
    let again = Arc::new(AtomicBool::new(false));
    let failed = |error| Error::io("signals", "listen to", error);
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register_conditional_default(signal, Arc::clone(&again)).map_err(failed)?;
        signal_hook::flag::register(signal, Arc::clone(&again)).map_err(failed)?;
        signal_hook::flag::register_usize(signal, Arc::clone(&number), signal as usize).map_err(failed)?;
    }
    Ok(number)
}

/// A progress bar on a terminal, lines elsewhere.
struct Watcher<'a> {
    terminal: &'a Terminal,
    bar: ProgressBar,
    every: u64,
    seen: Seen,
}

/// Examples, tokens and time since the last line.
#[derive(Default)]
struct Seen {
    examples: usize,
    tokens: usize,
    seconds: f64,
    loss: f64,
    steps: u64,
}

impl<'a> Watcher<'a> {
    fn new(terminal: &'a Terminal, every: u64) -> Self {
        let shows = !terminal.quiet && std::io::stderr().is_terminal();
        let target = if shows { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(None, target);
        if let Ok(style) = ProgressStyle::with_template("{bar:30} {pos}/{len} {msg}, {eta} left") {
            bar.set_style(style);
        }
        Self { terminal, bar, every, seen: Seen::default() }
    }

    fn line(&self, text: &str) {
        if self.bar.is_hidden() { self.terminal.note(text) } else { self.bar.println(text) }
    }
}

impl Observer for Watcher<'_> {
    fn step(&mut self, report: &StepReport) {
        let seen = &mut self.seen;
        seen.examples += report.examples;
        seen.tokens += report.tokens;
        seen.seconds += report.seconds;
        seen.loss += report.loss;
        seen.steps += 1;
        let rate = |count: usize| count as f64 / seen.seconds.max(1e-9);
        let loss = seen.loss / seen.steps as f64;
        let text = format!("loss {loss:.4}, {:.1} examples/s, {:.0} tokens/s", rate(seen.examples), rate(seen.tokens));
        self.bar.set_length(report.total_steps);
        self.bar.set_position(report.step);
        self.bar.set_message(text.clone());
        if report.step.is_multiple_of(self.every) || report.step == report.total_steps {
            if self.bar.is_hidden() {
                let left = (report.total_steps - report.step) as f64 * seen.seconds / seen.steps as f64;
                self.terminal.note(&format!("step {}/{}: {text}, {left:.0} s left", report.step, report.total_steps));
            }
            self.seen = Seen::default();
        }
    }

    fn evaluated(&mut self, step: u64, metrics: &[(String, f64)], is_best: bool) {
        let named: Vec<String> = metrics.iter().map(|(name, value)| format!("{name} {value:.4}")).collect();
        let best = if is_best { ", the best so far" } else { "" };
        self.line(&format!("step {step}: held-out {}{best}", named.join(", ")));
    }
}

fn parent(path: &Path) -> &Path {
    path.parent().unwrap_or(path)
}

fn finish(summary: &Summary, method: Method, device: &Device, start: Instant, terminal: &Terminal) -> Result<()> {
    let memory = device.memory();
    let peak: serde_json::Map<_, _> =
        Kind::ALL.iter().map(|&kind| (kind.name().to_string(), json!(memory.at_peak(kind)))).collect();
    let best = summary.best.as_ref().map(|best| json!({"metric": best.metric, "value": best.value, "step": best.step}));
    let seconds = start.elapsed().as_secs_f64();
    let what = if method == Method::Prompt { "prompt" } else { "model" };
    let json = json!({
        "steps": summary.steps, "ended": summary.ended, "loss": summary.last_loss, "best": best,
        format!("best_{what}"): summary.best_path.display().to_string(),
        format!("final_{what}"): summary.final_path.display().to_string(),
        format!("{what}_sha256"): summary.final_hash, "peak_bytes": memory.peak_total(), "peak_bytes_by_kind": peak,
        "seconds": seconds,
    });
    let best = summary.best.as_ref().map_or_else(
        || format!("no held-out rows: the last {what} is the best"),
        |best| format!("best held-out {} {:.4} after step {}", best.metric, best.value, best.step),
    );
    let text = format!(
        "{} steps in {seconds:.1} s; {best}\n{what} in {}, of the last step {}\npeak memory {:.0} MiB",
        summary.steps,
        if method == Method::Prompt { parent(&summary.best_path) } else { &summary.best_path }.display(),
        &summary.final_hash[..16.min(summary.final_hash.len())],
        memory.peak_total() as f64 / f64::from(1 << 20),
    );
    terminal.result(&json, &text)
}
