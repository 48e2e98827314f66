//! `softprompt experiment`: the paper's experiments over any model and data, each one command.

mod args;
mod finished;
mod members;
mod score;

use super::prepare::open_model;
use super::{Terminal, printable};
use crate::config::{Method, PromptInit, Resume, TrainConfig};
use crate::error::{Error, Place, Result};
use crate::eval::ensemble;
use crate::experiments::{Failure, Group, Output, Plan, Results, Row, curve_of, method_name, neighbours};
use crate::models::Model;
use crate::prompt::PromptFile;
use crate::report::Run;
use crate::storage::atomic_write;
use crate::train::Summary;
use crate::weights::{Weights, locate::locate};
use args::Args;
use clap::ArgMatches;
use score::{Place as Scored, Scorer};
use std::path::{Path, PathBuf};

pub(super) use args::command;

/// The name of the column of the rows that the best checkpoint is chosen by.
const HELD_OUT: &str = "held-out rows";

pub(super) fn run(matches: &ArgMatches, terminal: &Terminal) -> Result<()> {
    let args = Args::read(matches)?;
    if args.base.resume == Resume::Last(false) {
        refuse_what_is_there(&args.base.output_dir)?;
    }
    let plan = plan(&args)?;
    let untrained = before_training(&args, &plan, terminal)?;
    let trained = Trained::of(&plan, &args, terminal)?;
    let output = match args.name.as_str() {
        "steps" => steps(&args, &trained)?,
        "ensemble" => together(&args, &trained, terminal)?,
        "neighbours" => nearest(&args, &trained)?,
        _ => compared(&args, &plan, &trained, untrained, terminal)?,
    };
    write(&args, &output)?;
    let failed = trained.failures.iter().map(|failure| format!("{} failed: {}\n", failure.run, failure.error));
    let text = format!(
        "{}\n\n{}\n{}results.json, table.md, plot.svg and all runs in {}",
        output.caption,
        output.table.text(),
        failed.collect::<String>(),
        args.base.output_dir.display()
    );
    terminal.result(&output.json, &printable(&text))
}

fn refuse_what_is_there(dir: &Path) -> Result<()> {
    let is_empty = !dir.exists() || std::fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_none());
    if is_empty {
        return Ok(());
    }
    Err(Error::config(Place::file(dir).of("output_dir"), "a new or empty directory", "one that holds something")
        .hint("take another --output-dir, or --resume true to go on"))
}

fn plan(args: &Args) -> Result<Plan> {
    let plan = Plan::new(args.base.clone(), args.seeds);
    Ok(match args.name.as_str() {
        "length" => plan.lengths(&args.lengths),
        "init" => plan.inits(&args.inits, args.init_text.as_deref()),
        "model-size" => {
            let sized = args.models.iter().map(|model| Ok((model.clone(), parameters(model)?)));
            plan.models(&sized.collect::<Result<Vec<_>>>()?, &args.methods, args.full)?
        }
        "methods" | "transfer" => plan.methods(&args.methods, args.full)?,
        _ => plan.seeds(),
    })
}

/// How many numbers the model's file holds.
fn parameters(model: &Path) -> Result<f64> {
    let weights = Weights::open(&locate(&model.to_string_lossy())?)?;
    let sizes = weights.infos().map(|(info, _)| info.shape.iter().map(|&length| length as f64).product::<f64>());
    Ok(sizes.sum())
}

/// A run that reached its end.
struct Finished {
    group: usize,
    config: TrainConfig,
    summary: Summary,
}

/// The runs of a plan, those that ended well and those that did not.
struct Trained {
    runs: Vec<Finished>,
    failures: Vec<Failure>,
}

impl Trained {
    /// Trains every member. One that fails is told, and the others go on; an interruption ends all.
    fn of(plan: &Plan, args: &Args, terminal: &Terminal) -> Result<Self> {
        let configs: Vec<TrainConfig> = plan.members.iter().map(|member| member.config.clone()).collect();
        let results = members::run_all(&configs, &args.base.output_dir, args.group_size, terminal)?;
        let (mut runs, mut failed) = (Vec::new(), Vec::new());
        for ((member, config), result) in plan.members.iter().zip(configs).zip(results) {
            match result {
                Some(Ok(summary)) => runs.push(Finished { group: member.group, config, summary }),
                Some(Err(error)) if matches!(error, Error::Interrupted { .. }) => return Err(error),
                Some(Err(error)) => failed.push((config.output_dir.display().to_string(), error)),
                None => {}
            }
        }
        if runs.is_empty() && !failed.is_empty() {
            return Err(failed.swap_remove(0).1);
        }
        let failures = failed.into_iter().map(|(run, error)| Failure { run, error: error.to_string() }).collect();
        Ok(Self { runs, failures })
    }

    fn of_method(&self, method: Method) -> impl Iterator<Item = (usize, &Finished)> {
        self.runs.iter().enumerate().filter(move |(_, run)| run.config.method == method)
    }
}

/// Looks at all rows that will be scored on, so that what is wrong with them is told before anything is trained, and scores
/// what needs no training.
fn before_training(args: &Args, plan: &Plan, terminal: &Terminal) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for path in models_of(plan.members.iter().map(|member| &member.config)) {
        let config = TrainConfig { model: path.clone(), ..args.base.clone() };
        let model = open_model(&config)?;
        let of_model = plan.members.iter().map(|member| &member.config).filter(|config| config.model == path);
        let prompt_rows: Vec<usize> = of_model.map(TrainConfig::prompt_rows).collect();
        let mut scorer = Scorer::new(&config, &model, terminal);
        for place in &args.places() {
            scorer.check(place, &prompt_rows)?;
        }
        if args.name == "methods" {
            rows.extend(without_training(args, &config, &model, terminal)?);
        }
    }
    Ok(rows)
}

/// The models of `configs`, each once, in their order.
fn models_of<'a>(configs: impl Iterator<Item = &'a TrainConfig>) -> Vec<PathBuf> {
    let mut models: Vec<PathBuf> = Vec::new();
    for config in configs {
        if !models.contains(&config.model) {
            models.push(config.model.clone());
        }
    }
    models
}

/// Groups side by side, by the best checkpoints: on the held-out rows that chose them, and on every test file.
fn compared(args: &Args, plan: &Plan, trained: &Trained, untrained: Vec<Row>, terminal: &Terminal) -> Result<Output> {
    let places = args.places();
    let mut columns: Vec<String> = Vec::new();
    if args.has_held_out() {
        columns.push(HELD_OUT.to_owned());
    }
    columns.extend(args.tests.iter().map(|(name, _)| name.clone()));
    // For each run a figure in each column.
    let mut figures: Vec<Vec<Option<f64>>> = trained
        .runs
        .iter()
        .map(|run| if args.has_held_out() { vec![run.summary.best.as_ref().map(|best| best.value)] } else { vec![] })
        .collect();
    let mut rows = untrained;
    for path in models_of(trained.of_method(Method::Prompt).map(|(_, run)| &run.config)) {
        let of_model: Vec<(usize, &Finished)> =
            trained.of_method(Method::Prompt).filter(|(_, run)| run.config.model == path).collect();
        if of_model.is_empty() || args.tests.is_empty() {
            continue;
        }
        let config = TrainConfig { model: path.clone(), ..args.base.clone() };
        let model = open_model(&config)?;
        let prompts = of_model.iter().map(|(_, run)| prompt_of(&model, &run.summary)).collect::<Result<Vec<_>>>()?;
        let mut scorer = Scorer::new(&config, &model, terminal);
        for place in places.iter().filter(|place| matches!(place, Scored::File(..))) {
            for ((index, _), score) in of_model.iter().zip(scorer.scores(&prompts, place, None)?) {
                figures[*index].push(Some(score));
            }
        }
    }
    for (index, run) in trained.of_method(Method::Full).filter(|_| !args.tests.is_empty()) {
        let config = TrainConfig { model: run.summary.best_path.clone(), method: Method::Prompt, ..args.base.clone() };
        let model = open_model(&config)?;
        let mut scorer = Scorer::new(&config, &model, terminal);
        for place in places.iter().filter(|place| matches!(place, Scored::File(..))) {
            figures[index]
                .extend(scorer.scores(&[model.prompt_from(0, &[])?], place, None)?.first().copied().map(Some));
        }
    }

    let (series, grouped) = by_series(plan, trained, &figures, columns.len());
    rows.extend(grouped);
    if series.len() > 1 {
        let of_series = |name: &String| columns.iter().map(|column| format!("{name}, {column}")).collect::<Vec<_>>();
        columns = series.iter().flat_map(of_series).collect();
    }
    let compared = match args.name.as_str() {
        "length" => "rows of the prompt",
        "init" => "initialisation",
        "model-size" => "parameters of the model",
        _ => "method",
    };
    let mut results = results(args, compared, columns, rows, trained);
    if trained.failures.is_empty() && series.len() == 1 {
        results.differences.extend(against_full(&results.rows));
    }
    Ok(results.output())
}

/// How far prompts are above full fine-tuning, seed by seed.
fn against_full(rows: &[Row]) -> Option<Row> {
    let of = |method| rows.iter().find(|row| row.name == method_name(method));
    of(Method::Prompt)?.minus(of(Method::Full)?)
}

/// The series of a plan, and its rows: groups of one name and several series are one row, with the columns of each series.
fn by_series(plan: &Plan, trained: &Trained, figures: &[Vec<Option<f64>>], columns: usize) -> (Vec<String>, Vec<Row>) {
    let (mut series, mut rows): (Vec<String>, Vec<Row>) = (Vec::new(), Vec::new());
    for (index, Group { name, x, series: of }) in plan.groups.iter().enumerate() {
        if !series.contains(of) {
            series.push(of.clone());
        }
        let runs: Vec<&Vec<Option<f64>>> =
            trained.runs.iter().zip(figures).filter(|(run, _)| run.group == index).map(|(_, row)| row).collect();
        let values =
            (0..columns).map(|column| runs.iter().filter_map(|row| row.get(column).copied().flatten()).collect());
        match rows.last_mut() {
            Some(row) if row.name == *name => row.values.extend(values),
            _ => rows.push(Row { name: name.clone(), x: *x, values: values.collect() }),
        }
    }
    (series, rows)
}

fn results(args: &Args, compared: &str, columns: Vec<String>, rows: Vec<Row>, trained: &Trained) -> Results {
    Results {
        experiment: args.name.clone(),
        metric: args.metric().name().to_owned(),
        compared: compared.to_owned(),
        columns,
        rows,
        failures: trained.failures.clone(),
        ..Results::default()
    }
}

fn prompt_of(model: &Model, summary: &Summary) -> Result<crate::tensor::Tensor> {
    let file = PromptFile::read(&summary.best_path)?;
    file.expect_width(model.config().hidden_size, model.name())?;
    model.prompt_from(file.rows, &file.values.to_vec::<f64>())
}

/// The model as it is, and with examples in front of every row.
fn without_training(args: &Args, config: &TrainConfig, model: &Model, terminal: &Terminal) -> Result<Vec<Row>> {
    let none = [model.prompt_from(0, &[])?];
    let mut scorer = Scorer::new(config, model, terminal);
    let mut zero = Row { name: "zero-shot".to_owned(), ..Row::default() };
    for place in &args.places() {
        zero.values.push(scorer.scores(&none, place, None)?);
    }
    let mut rows = vec![zero];
    for &examples in &args.few_shot {
        let mut row = Row { name: format!("{examples}-shot"), ..Row::default() };
        for place in &args.places() {
            let mut values = Vec::new();
            for seed in (0..args.seeds).map(|offset| config.seed.saturating_add(offset)) {
                let few = scorer.few_shot(examples, seed, args.joiner.as_deref())?;
                values.extend(scorer.scores(&none, place, Some(&few))?);
            }
            row.values.push(values);
        }
        rows.push(row);
    }
    Ok(rows)
}

/// The held-out metric after each evaluation.
fn steps(args: &Args, trained: &Trained) -> Result<Output> {
    let metric = args.metric().name();
    let curves = trained.runs.iter().map(|run| Ok(Run::read(&run.config.output_dir)?.curve("eval", metric)));
    let rows = curve_of(&curves.collect::<Result<Vec<_>>>()?);
    Ok(results(args, "step", vec![HELD_OUT.to_owned()], rows, trained).output())
}

/// The prompts of all seeds in one pass: each alone, and their votes.
fn together(args: &Args, trained: &Trained, terminal: &Terminal) -> Result<Output> {
    let config = &args.base;
    let model = open_model(config)?;
    let prompts = trained.runs.iter().map(|run| prompt_of(&model, &run.summary)).collect::<Result<Vec<_>>>()?;
    let mut scorer = Scorer::new(config, &model, terminal);
    let (mut columns, mut rows) = (Vec::new(), vec![Row::default(); 4]);
    let names = ["each prompt alone", "best prompt", "majority vote", "mean probability"];
    rows.iter_mut().zip(names).for_each(|(row, name)| row.name = name.to_owned());
    let places = args.places();
    // Where there are test files the held-out rows, which chose each prompt's checkpoint, are no test of them.
    for place in places.iter().filter(|place| args.tests.is_empty() || matches!(place, Scored::File(..))) {
        let (found, labels) = scorer.evaluations(&prompts, place)?;
        let alone: Vec<f64> = found.iter().map(|one| score::metric_of(args.metric(), one)).collect();
        let best = alone.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let joint = ensemble(labels, &found)?;
        let voted = [&joint.majority_vote, &joint.mean_probability].map(|of| score::joint_metric(args.metric(), of));
        columns.push(place.name().to_owned());
        for (row, values) in rows.iter_mut().zip([alone, vec![best], vec![voted[0]], vec![voted[1]]]) {
            row.values.push(values);
        }
    }
    Ok(results(args, "predictor", columns, rows, trained).output())
}

/// What the rows of each seed's best prompt are near to.
fn nearest(args: &Args, trained: &Trained) -> Result<Output> {
    let model = open_model(&args.base)?;
    let found = trained.runs.iter().map(|run| {
        let file = PromptFile::read(&run.summary.best_path)?;
        let values = file.values.to_vec::<f64>();
        let (rows, _) = model.device().run(|| crate::inspect::neighbours(&model, &values, args.top))?;
        Ok((format!("seed {}", run.config.seed), rows))
    });
    Ok(neighbours(&found.collect::<Result<Vec<_>>>()?, &trained.failures))
}

fn write(args: &Args, output: &Output) -> Result<()> {
    let dir = &args.base.output_dir;
    let json = serde_json::to_string_pretty(&output.json)
        .map_err(|error| Error::op("experiment", "results that JSON can hold", error.to_string()))?;
    let markdown = format!("{}\n\n{}", output.caption, output.table.markdown());
    atomic_write(dir.join("table.md"), markdown.as_bytes())?;
    atomic_write(dir.join("plot.svg"), output.svg.as_bytes())?;
    // Last: where it is, the others are.
    atomic_write(dir.join("results.json"), (json + "\n").as_bytes())
}

/// The initialisations of the paper, and what they are called.
const INITS: [(PromptInit, &str); 4] = [
    (PromptInit::Uniform, "uniform"),
    (PromptInit::SampleVocab, "sample_vocab"),
    (PromptInit::ClassLabels, "class_labels"),
    (PromptInit::Text, "text"),
];
