//! The flags of an experiment: those of `train`, and a few of its own.

use super::super::train;
use super::INITS;
use super::score::Place as Scored;
use crate::config::{Method, Metric, PromptInit, Resume, TrainConfig, environment};
use crate::error::{Error, Place, Result};
use crate::experiments::Full;
use clap::{Arg, ArgAction, ArgMatches};
use std::path::PathBuf;
use std::str::FromStr;

const NAMES: [&str; 8] = ["length", "init", "model-size", "methods", "steps", "transfer", "ensemble", "neighbours"];

pub(in crate::cli) fn command(command: clap::Command) -> clap::Command {
    let own = |name: &'static str, value: &'static str, help: &'static str| {
        Arg::new(name).long(name).value_name(value).help(help).help_heading("Experiment")
    };
    let list = |name, value, default: &'static str, help| own(name, value, help).default_value(default);
    train::with_keys(command)
        .about("Train and compare as the paper does: length, init, model-size, methods, steps, transfer, ensemble, neighbours")
        .mut_arg("model", |arg| arg.help("The model; of model-size several, each with a flag of its own"))
        .arg(Arg::new("experiment").value_name("NAME").required(true).value_parser(NAMES).help(
            "length: rows of the prompt. init: where it begins. model-size: several --model. methods: prompt, all weights, \
             examples in the context, none. steps: along training. transfer: trained on one domain, tested on others. \
             ensemble: the seeds' prompts together. neighbours: the tokens nearest to their rows",
        ))
        .arg(list("seeds", "N", "3", "Runs of each kind, with the seeds --seed, --seed + 1, …")
            .value_parser(clap::value_parser!(u64).range(1..=1000)))
        .arg(
            own("group-size", "N", "The most prompts trained in one pass; without it all, or as many as fit into --memory-limit")
                .value_parser(clap::value_parser!(u32).range(1..)),
        )
        .arg(own("test-file", "[NAME=]FILE", "Rows to score the best checkpoints on; repeat it. They choose nothing")
            .action(ArgAction::Append))
        .arg(list("lengths", "LIST", "1,5,20,100,150", "Of length: the rows"))
        .arg(own("inits", "LIST", "Of init: among uniform, sample_vocab, class_labels and text; text only with --init-text by default"))
        .arg(own("init-text", "TEXT", "Of init: the text"))
        .arg(own("methods", "LIST", "Of methods, transfer and model-size: what is trained, by default prompt,full, of model-size prompt"))
        .arg(list("few-shot", "LIST", "8", "Of methods: how many training rows stand in the context"))
        .arg(own("few-shot-joiner", "TEXT", "Of methods: what stands behind each of them, by default a line break")
            .allow_hyphen_values(true))
        .arg(own("full-learning-rate", "X", "Of methods, transfer and model-size: the learning rate of full, by default that method's"))
        .arg(own("full-max-steps", "N", "Of methods, transfer and model-size: the steps of full, by default those of prompts"))
        .arg(list("top", "N", "5", "Of neighbours: how many of each row").value_parser(clap::value_parser!(u16).range(1..)))
}

/// What an experiment is asked to do.
pub(super) struct Args {
    pub(super) name: String,
    pub(super) base: TrainConfig,
    pub(super) seeds: u64,
    /// The most prompts in a pass.
    pub(super) group_size: Option<usize>,
    /// Names and files to score on.
    pub(super) tests: Vec<(String, PathBuf)>,
    pub(super) lengths: Vec<usize>,
    pub(super) inits: Vec<(PromptInit, &'static str)>,
    pub(super) init_text: Option<String>,
    pub(super) models: Vec<PathBuf>,
    pub(super) methods: Vec<Method>,
    pub(super) full: Full,
    pub(super) few_shot: Vec<usize>,
    pub(super) joiner: Option<String>,
    pub(super) top: usize,
}

impl Args {
    pub(super) fn read(matches: &ArgMatches) -> Result<Self> {
        let text = |name: &str| matches.get_one::<String>(name).cloned();
        let name = text("experiment").unwrap_or_default();
        let mut models: Vec<String> = matches.get_many("model").into_iter().flatten().cloned().collect();
        let flags = train::flags_but(matches, if name == "model-size" { &["model"] } else { &[] })?;
        let first = models.first().filter(|_| name == "model-size").map(|model| ("model".to_owned(), model.clone()));
        let file = matches.get_one::<String>("config").map(PathBuf::from);
        let flags = first.into_iter().chain(flags).collect();
        let base = TrainConfig::resolve(file.as_deref(), environment(), flags)?.config;
        if models.is_empty() {
            models.push(base.model.to_string_lossy().into_owned());
        }
        let init_text = text("init-text");
        let args = Self {
            seeds: matches.get_one::<u64>("seeds").copied().unwrap_or(1),
            group_size: matches.get_one::<u32>("group-size").map(|&size| size as usize),
            tests: tests(matches.get_many::<String>("test-file").into_iter().flatten())?,
            lengths: list(matches, "lengths")?,
            inits: inits(text("inits").as_deref(), init_text.as_deref())?,
            init_text,
            models: models.into_iter().map(PathBuf::from).collect(),
            methods: methods(&text("methods").unwrap_or_else(|| match name.as_str() {
                "model-size" => "prompt".to_owned(),
                _ => "prompt,full".to_owned(),
            }))?,
            full: Full {
                learning_rate: number(matches, "full-learning-rate")?,
                max_steps: number(matches, "full-max-steps")?,
            },
            few_shot: list(matches, "few-shot")?,
            joiner: text("few-shot-joiner"),
            top: matches.get_one::<u16>("top").copied().unwrap_or(5).into(),
            name,
            base,
        };
        args.check(matches)?;
        Ok(args)
    }

    /// Refuses what this experiment cannot do, and what it would not look at.
    fn check(&self, matches: &ArgMatches) -> Result<()> {
        let of_others = [
            ("test-file", &["length", "init", "model-size", "methods", "transfer", "ensemble"][..]),
            ("lengths", &["length"]),
            ("inits", &["init"]),
            ("init-text", &["init"]),
            ("methods", &["methods", "transfer", "model-size"]),
            ("few-shot", &["methods"]),
            ("few-shot-joiner", &["methods"]),
            ("full-learning-rate", &["methods", "transfer", "model-size"]),
            ("full-max-steps", &["methods", "transfer", "model-size"]),
            ("top", &["neighbours"]),
        ];
        let is_given = |flag: &str| matches.value_source(flag) == Some(clap::parser::ValueSource::CommandLine);
        for (flag, of) in of_others {
            if is_given(flag) && !of.contains(&self.name.as_str()) {
                let place = Place::item(format!("--{flag}"));
                return Err(Error::usage(place, format!("the experiment {}", of.join(" or ")), self.name.clone()));
            }
        }
        let base = &self.base;
        if base.method != Method::Prompt {
            return Err(Error::config(Place::item("method"), "prompt, which every experiment is about", "another")
                .hint("methods and transfer train all weights beside prompts: --methods prompt,full"));
        }
        if let Resume::From(path) = &base.resume {
            let got = path.display().to_string();
            return Err(Error::config(
                Place::item("resume"),
                "true or false: each run has checkpoints of its own",
                got,
            ));
        }
        if !self.has_held_out() && (self.tests.is_empty() || self.name == "steps") && self.name != "neighbours" {
            let expected = "eval_file or eval_fraction, to score on and to choose the best checkpoint by";
            return Err(
                Error::config(Place::item("eval_file"), expected, "neither").hint("hold rows out, or give --test-file")
            );
        }
        if self.name == "transfer" && self.tests.is_empty() {
            return Err(Error::usage(Place::item("--test-file"), "the domains to test on", "none")
                .hint("as in --test-file amazon=amazon.jsonl --test-file tweets=tweets.jsonl"));
        }
        if self.name == "model-size" && self.models.len() < 2 {
            return Err(Error::usage(Place::item("--model"), "two or more models", self.models.len().to_string()));
        }
        if self.name == "ensemble" && matches!(self.metric(), Metric::ExactMatch | Metric::Loss) {
            let expected = "accuracy, balanced_accuracy or macro_f1: prompts vote on labels";
            return Err(Error::config(Place::item("metric_for_best_model"), expected, self.metric().name()));
        }
        Ok(())
    }

    pub(super) fn metric(&self) -> Metric {
        self.base.metric_for_best_model
    }

    pub(super) fn has_held_out(&self) -> bool {
        self.base.eval_file.is_some() || self.base.eval_fraction > 0.0
    }

    /// Where to score, in the order of the columns.
    pub(super) fn places(&self) -> Vec<Scored> {
        let held_out = self.has_held_out().then_some(Scored::HeldOut);
        let tests = self.tests.iter().map(|(name, path)| Scored::File(name.clone(), path.clone()));
        held_out.into_iter().chain(tests).collect()
    }
}

/// `NAME=FILE`, or a file that is called by its path.
fn tests<'a>(given: impl Iterator<Item = &'a String>) -> Result<Vec<(String, PathBuf)>> {
    let mut tests: Vec<(String, PathBuf)> = Vec::new();
    for text in given {
        let (name, path) = match text.split_once('=') {
            Some((name, path)) if !name.is_empty() && !PathBuf::from(text).exists() => (name, path),
            _ => (text.as_str(), text.as_str()),
        };
        if tests.iter().any(|(known, _)| known == name) || name == super::HELD_OUT {
            return Err(Error::usage(
                Place::item("--test-file"),
                "a name of its own for each file",
                format!("{name:?}"),
            )
            .hint("as in --test-file amazon=amazon.jsonl"));
        }
        tests.push((name.to_owned(), PathBuf::from(path)));
    }
    Ok(tests)
}

fn list(matches: &ArgMatches, flag: &str) -> Result<Vec<usize>> {
    let text = matches.get_one::<String>(flag).cloned().unwrap_or_default();
    let wrong = || {
        let expected = "distinct integers ≥ 1, separated by commas";
        Error::usage(Place::item(format!("--{flag}")), expected, format!("{text:?}"))
    };
    let numbers: Vec<usize> =
        text.split(',').map(|part| part.trim().parse().map_err(|_| wrong())).collect::<Result<_>>()?;
    let is_repeated = (1..numbers.len()).any(|at| numbers[..at].contains(&numbers[at]));
    if numbers.contains(&0) || is_repeated { Err(wrong()) } else { Ok(numbers) }
}

fn number<T: FromStr + PartialOrd + Default>(matches: &ArgMatches, flag: &str) -> Result<Option<T>> {
    let Some(text) = matches.get_one::<String>(flag) else { return Ok(None) };
    match text.parse::<T>() {
        Ok(number) if number > T::default() => Ok(Some(number)),
        _ => Err(Error::usage(Place::item(format!("--{flag}")), "a number > 0", format!("{text:?}"))),
    }
}

/// Words of `text` among `all`, without repetition.
fn chosen<T: Copy>(flag: &str, text: &str, all: &[(T, &'static str)]) -> Result<Vec<(T, &'static str)>> {
    let mut found: Vec<(T, &'static str)> = Vec::new();
    for word in text.split(',').map(str::trim) {
        match all.iter().find(|(_, name)| *name == word) {
            Some(&one) if found.iter().all(|(_, name)| *name != word) => found.push(one),
            _ => {
                let names: Vec<&str> = all.iter().map(|(_, name)| *name).collect();
                let expected = format!("distinct words among {}, separated by commas", names.join(", "));
                return Err(Error::usage(Place::item(format!("--{flag}")), expected, format!("{text:?}")));
            }
        }
    }
    Ok(found)
}

fn inits(text: Option<&str>, init_text: Option<&str>) -> Result<Vec<(PromptInit, &'static str)>> {
    let found = match text {
        Some(text) => chosen("inits", text, &INITS)?,
        None => INITS.into_iter().filter(|(init, _)| *init != PromptInit::Text || init_text.is_some()).collect(),
    };
    let wants_text = found.iter().any(|(init, _)| *init == PromptInit::Text);
    if wants_text != init_text.is_some() || init_text.is_some_and(str::is_empty) {
        return Err(Error::usage(
            Place::item("--init-text"),
            "a text exactly where --inits has text",
            format!("{init_text:?}"),
        )
        .hint("as in --inits uniform,text --init-text \"Sort by topic:\""));
    }
    Ok(found)
}

fn methods(text: &str) -> Result<Vec<Method>> {
    let all = [(Method::Prompt, "prompt"), (Method::Full, "full")];
    Ok(chosen("methods", text, &all)?.into_iter().map(|(method, _)| method).collect())
}
