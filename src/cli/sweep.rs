//! `softprompt sweep`: many prompts on one frozen model, or the list of the jobs that would train them.

use super::emit::{Emitted, jobs};
use super::members::{Outcome, Outcomes, run_members};
use super::train::{flags, with_keys};
use super::{Terminal, refuse_to_overwrite};
use crate::config::{Member, Method, Resume, Sweep, TrainConfig, environment};
use crate::error::{Error, Place, Result};
use crate::storage::{atomic_write, check_writable};
use crate::train::Ended;
use clap::{Arg, ArgAction, ArgMatches};
use serde_json::{Map, Value, json};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Members and results, in `output_dir`.
const FILE: &str = "sweep.json";

pub(super) fn command(command: clap::Command) -> clap::Command {
    let list = Arg::new("sweep").long("sweep").value_name("KEY=VALUES").action(ArgAction::Append).help(
        "A key that varies: values with commas between, or a JSON array; repeat it: every value with every other",
    );
    let zip = Arg::new("zip")
        .long("zip")
        .action(ArgAction::SetTrue)
        .help("Pair the lists of --sweep value by value, as for train_file and eval_file of several tasks");
    let group = Arg::new("group_size")
        .long("group-size")
        .value_name("N")
        .value_parser(clap::value_parser!(u32).range(1..))
        .help("The most prompts in a pass; without it all, or as many as fit into --memory-limit");
    let emit = Arg::new("emit")
        .long("emit")
        .value_name("FORM")
        .value_parser(Emitted::NAMES)
        .help("Train nothing; write a job for each member instead: slurm, k8s or jsonl. Then any key may vary");
    let emit_file = Arg::new("emit_file")
        .long("emit-file")
        .value_name("FILE")
        .value_parser(clap::value_parser!(PathBuf))
        .requires("emit")
        .help("Where the jobs go; without it to stdout");
    let image = Arg::new("image")
        .long("image")
        .value_name("IMAGE")
        .default_value("softprompt:latest")
        .help("The container image of --emit k8s");
    let force = Arg::new("force")
        .long("force")
        .action(ArgAction::SetTrue)
        .requires("emit_file")
        .help("Write over an existing --emit-file");
    with_keys(command)
        .about("Tune many prompts in one pass through one model, over lists of values")
        .args([list, zip, group, emit, emit_file, image, force])
}

pub(super) fn run(matches: &ArgMatches, terminal: &Terminal) -> Result<()> {
    let file = matches.get_one::<String>("config").map(PathBuf::from);
    let emitted = matches.get_one::<String>("emit").and_then(|name| Emitted::named(name));
    let sweep = Sweep {
        lists: matches.get_many::<String>("sweep").unwrap_or_default().cloned().collect(),
        zip: matches.get_flag("zip"),
        is_one_pass: emitted.is_none(),
    };
    let members = TrainConfig::resolve_sweep(file.as_deref(), environment(), flags(matches)?, &sweep)?;
    match emitted {
        Some(form) => emit(form, &members, matches, terminal),
        None => train(members, matches.get_one::<u32>("group_size").map(|&size| size as usize), terminal),
    }
}

fn emit(form: Emitted, members: &[Member], matches: &ArgMatches, terminal: &Terminal) -> Result<()> {
    let image = matches.get_one::<String>("image").map_or("", String::as_str);
    let text = jobs(form, members, image)?;
    let Some(path) = matches.get_one::<PathBuf>("emit_file") else {
        return std::io::stdout().write_all(text.as_bytes()).map_err(|error| Error::io("stdout", "write", error));
    };
    refuse_to_overwrite(path, matches.get_flag("force"))?;
    check_writable(path)?;
    atomic_write(path, text.as_bytes())?;
    let json = json!({"jobs": members.len(), "emit_file": path.display().to_string()});
    terminal.result(&json, &format!("{} jobs in {}", members.len(), path.display()))
}

fn train(members: Vec<Member>, group_size: Option<usize>, terminal: &Terminal) -> Result<()> {
    let start = Instant::now();
    let dir = check(&members)?;
    let overrides: Vec<Value> = members.iter().map(overrides_json).collect();
    let members: Vec<(String, TrainConfig)> =
        members.into_iter().map(|member| (member.name, member.resolved.config)).collect();
    let begun: Vec<Value> = members
        .iter()
        .zip(&overrides)
        .map(|((name, config), overrides)| {
            json!({"name": name, "overrides": overrides, "output_dir": config.output_dir.display().to_string()})
        })
        .collect();
    let write = |value: &Value| atomic_write(dir.join(FILE), format!("{value:#}\n").as_bytes());
    let ready = || {
        std::fs::create_dir_all(&dir).map_err(|error| Error::io(&dir, "create", error))?;
        write(&json!({ "members": begun }))
    };
    let outcomes = run_members(members, group_size, terminal, ready)?;
    let seconds = start.elapsed().as_secs_f64();
    let all = outcomes.members.iter().zip(&overrides).map(|(outcome, overrides)| outcome_json(outcome, overrides));
    let json = json!({
        "members": all.collect::<Vec<_>>(),
        "best": best_of(&outcomes.members).map(|best| best.name.clone()),
        "seconds": seconds,
        "peak_bytes": outcomes.memory.peak_total(),
    });
    write(&json)?;
    terminal.result(&json, &table(&outcomes, seconds))?;
    failure(outcomes.members, terminal)
}

/// Refuses what a sweep cannot do, and gives the directory of all members.
fn check(members: &[Member]) -> Result<PathBuf> {
    let Some(member) = members.first() else { return Err(Error::op("sweep", "at least one member", "none")) };
    let config = &member.resolved.config;
    if config.method != Method::Prompt {
        return Err(Error::config(
            member.resolved.place("method"),
            "prompt: a sweep shares one frozen model",
            "another",
        )
        .hint("train weights as jobs of their own, with --emit"));
    }
    if let Resume::From(path) = &config.resume {
        return Err(Error::config(
            member.resolved.place("resume"),
            "true or false in a sweep",
            path.display().to_string(),
        )
        .hint("true goes on from the last checkpoint of each member"));
    }
    let dir = config.output_dir.parent().unwrap_or(Path::new(".")).to_path_buf();
    if config.resume == Resume::Last(false) && dir.join(FILE).exists() {
        return Err(Error::config(
            Place::file(&dir).of("output_dir"),
            "a new or empty directory",
            "one that holds a sweep",
        )
        .hint("take another --output-dir, or --resume true to go on"));
    }
    Ok(dir)
}

fn overrides_json(member: &Member) -> Value {
    let value = |value: &Option<toml::Value>| value.as_ref().map_or(Value::Null, |value| json!(value));
    member.overrides.iter().map(|(key, of_key)| ((*key).to_owned(), value(of_key))).collect::<Map<_, _>>().into()
}

fn outcome_json(outcome: &Outcome, overrides: &Value) -> Value {
    let Outcome { name, config, result, seconds } = outcome;
    let mut value = json!({
        "name": name, "overrides": overrides, "output_dir": config.output_dir.display().to_string(), "seconds": seconds,
        "ended": ended(outcome),
    });
    match result {
        Ok(summary) => {
            value["steps"] = json!(summary.steps);
            value["loss"] = json!(summary.last_loss);
            value["best"] = match &summary.best {
                Some(best) => json!({"metric": best.metric, "value": best.value, "step": best.step}),
                None => Value::Null,
            };
            value["best_prompt"] = json!(summary.best_path.display().to_string());
            value["prompt_sha256"] = json!(summary.final_hash);
        }
        Err(error) => value["error"] = json!({"code": error.exit_code(), "message": error.to_string()}),
    }
    value
}

fn ended(outcome: &Outcome) -> &'static str {
    match &outcome.result {
        Ok(summary) if summary.ended == Ended::EarlyStop => "early_stop",
        Ok(_) => "done",
        Err(Error::Interrupted { .. }) => "interrupted",
        Err(Error::Diverged(_)) => "diverged",
        Err(_) => "failed",
    }
}

/// The member whose best evaluation is the best of all, if they were all judged by one metric.
fn best_of(outcomes: &[Outcome]) -> Option<&Outcome> {
    let metric = outcomes.first()?.config.metric_for_best_model;
    if outcomes.iter().any(|outcome| outcome.config.metric_for_best_model != metric) {
        return None;
    }
    let value = |outcome: &Outcome| Some(outcome.result.as_ref().ok()?.best.as_ref()?.value);
    let score = |value: f64| if metric.greater_is_better() { value } else { -value };
    let judged = outcomes.iter().filter_map(|outcome| Some((outcome, score(value(outcome)?))));
    // Of equals the first.
    judged.reduce(|best, next| if next.1 > best.1 { next } else { best }).map(|(outcome, _)| outcome)
}

fn table(outcomes: &Outcomes, seconds: f64) -> String {
    let members = &outcomes.members;
    let width = members.iter().map(|outcome| outcome.name.chars().count()).max().unwrap_or(0).max("member".len());
    let mut lines =
        vec![format!("{:<width$}  {:>26}  {:>8}  {:>10}  ended", "member", "best held-out", "steps", "seconds")];
    for outcome in members {
        let summary = outcome.result.as_ref().ok();
        let best = summary.and_then(|summary| summary.best.as_ref());
        let best = best.map_or_else(|| "-".to_owned(), |best| format!("{} {:.4}", best.metric, best.value));
        let steps = summary.map_or_else(|| "-".to_owned(), |summary| summary.steps.to_string());
        let (name, ended) = (&outcome.name, ended(outcome));
        lines.push(format!("{name:<width$}  {best:>26}  {steps:>8}  {:>10.1}  {ended}", outcome.seconds));
    }
    lines.push(String::new());
    lines.extend(best_of(members).map(|best| format!("the best is {}", best.name)));
    for outcome in members {
        if let Err(error) = &outcome.result {
            lines.push(format!("{}: {}", outcome.name, super::printable(&error.to_string())));
        }
    }
    let peak = outcomes.memory.peak_total() as f64 / f64::from(1 << 20);
    lines.push(format!("{} prompts in {seconds:.1} s; peak memory {peak:.0} MiB", members.len()));
    lines.join("\n")
}

/// The error to end with: an interruption, else that of the first member that failed.
fn failure(outcomes: Vec<Outcome>, terminal: &Terminal) -> Result<()> {
    let mut failed: Vec<(String, Error)> =
        outcomes.into_iter().filter_map(|outcome| Some((outcome.name, outcome.result.err()?))).collect();
    if failed.is_empty() {
        return Ok(());
    }
    let interrupted = failed.iter().position(|(_, error)| matches!(error, Error::Interrupted { .. }));
    if interrupted.is_some() {
        terminal.note("interrupted; every member has a checkpoint: go on with --resume true");
    } else {
        let names: Vec<&str> = failed.iter().map(|(name, _)| name.as_str()).collect();
        terminal.note(&format!("failed: {}; the others are done", names.join(" ")));
    }
    Err(failed.swap_remove(interrupted.unwrap_or(0)).1)
}
