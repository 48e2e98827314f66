//! `softprompt train`: a run from its configuration to its summary. The flags come from the table of keys.

use super::Terminal;
use super::prepare::{Data, Files, fit_into, open_model, training};
use crate::config::{KEYS, Method, TrainConfig, environment};
use crate::device::{Device, Kind, parse_bytes};
use crate::error::{Error, Place, Result};
use crate::train::{Observer, StepReport, Summary, refuse_to_overwrite, train};
use clap::{Arg, ArgAction, ArgMatches};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::json;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::time::Instant;

pub(super) fn command(command: clap::Command) -> clap::Command {
    with_keys(command).about("Tune a prompt, or train a model's weights")
}

/// A command with a flag for every key, and the file of them.
pub(super) fn with_keys(command: clap::Command) -> clap::Command {
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
    command.arg(config).args(flags)
}

/// The flags as key and value; a repeated list flag is one list.
pub(super) fn flags(matches: &ArgMatches) -> Result<Vec<(String, String)>> {
    flags_but(matches, &[])
}

/// [`flags`], without those of the keys in `others`.
pub(super) fn flags_but(matches: &ArgMatches, others: &[&str]) -> Result<Vec<(String, String)>> {
    let mut flags = Vec::new();
    for key in KEYS.iter().filter(|key| !others.contains(&key.name)) {
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
    let mut model = open_model(&config)?;
    let data = Data::load(&config, &model, &mut Files::default())?;
    data.note_left_out(&mut Vec::new(), terminal);
    let eval_rows = data.held_out.as_ref().map_or(0, |dataset| dataset.examples.len());
    terminal.note(&format!(
        "{}: {} training rows, {eval_rows} held-out rows, {} threads",
        model.name(),
        data.train.examples.len(),
        model.device().threads()
    ));
    if let Some(limit) = config.memory_limit.as_deref().and_then(parse_bytes) {
        fit_into(limit, &mut model, &config, &data.train, terminal)?;
    }
    let training = training(&config, &model, &data)?;
    let interrupt = signals()?;
    let mut watcher = Watcher::new(terminal, config.logging_steps);
    let outcome = train(training, &mut watcher, &interrupt);
    watcher.bar.finish_and_clear();
    let summary = outcome.inspect_err(|error| {
        if matches!(error, Error::Interrupted { .. }) {
            terminal.note("interrupted; a checkpoint is saved: go on with --resume true");
        }
    })?;
    finish(&summary, config.method, model.device(), start, terminal)
}

/// A number that a signal sets. The second signal ends the process at once, as it would have without us.
pub(super) fn signals() -> Result<Arc<AtomicUsize>> {
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

/// A progress bar on a terminal, lines elsewhere; lines alone for one of several runs.
pub(super) struct Watcher<'a> {
    terminal: &'a Terminal,
    pub(super) bar: ProgressBar,
    every: u64,
    seen: Seen,
    /// What its lines begin with.
    name: String,
    /// When something happened last.
    pub(super) heard: Instant,
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
    pub(super) fn new(terminal: &'a Terminal, every: u64) -> Self {
        let shows = !terminal.quiet && std::io::stderr().is_terminal();
        let target = if shows { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(None, target);
        if let Ok(style) = ProgressStyle::with_template("{bar:30} {pos}/{len} {msg}, {eta} left") {
            bar.set_style(style);
        }
        Self { terminal, bar, every, seen: Seen::default(), name: String::new(), heard: Instant::now() }
    }

    /// The watcher of the run `name` among several.
    pub(super) fn of_member(terminal: &'a Terminal, every: u64, name: &str) -> Self {
        let (bar, heard) = (ProgressBar::hidden(), Instant::now());
        Self { terminal, bar, every, seen: Seen::default(), name: format!("{name}: "), heard }
    }

    fn line(&self, text: &str) {
        if self.bar.is_hidden() { self.terminal.note(text) } else { self.bar.println(text) }
    }
}

impl Observer for Watcher<'_> {
    fn step(&mut self, report: &StepReport) {
        self.heard = Instant::now();
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
                let (name, step, total) = (&self.name, report.step, report.total_steps);
                self.terminal.note(&format!("{name}step {step}/{total}: {text}, {left:.0} s left"));
            }
            self.seen = Seen::default();
        }
    }

    fn evaluated(&mut self, step: u64, metrics: &[(String, f64)], is_best: bool) {
        let named: Vec<String> = metrics.iter().map(|(name, value)| format!("{name} {value:.4}")).collect();
        let best = if is_best { ", the best so far" } else { "" };
        self.line(&format!("{}step {step}: held-out {}{best}", self.name, named.join(", ")));
        self.heard = Instant::now();
    }

    fn saved(&mut self, _checkpoint: &Path) {
        self.heard = Instant::now();
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
