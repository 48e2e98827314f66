//! `softprompt eval`: how good a prompt is on labelled rows, or several are, alone and together.

mod several;

use super::few_shot::FewShotArgs;
use super::generate::{cut, ends};
use super::options::{DataArgs, ModelArgs, encoder, left_out, prompt_for};
use super::{Terminal, refuse_to_overwrite};
use crate::data::{Dataset, TextEncoder};
use crate::error::{Error, Place, Result};
use crate::eval::{Evaluation, Labels, Score, mean_loss, rank};
use crate::generate::{Generator, Sampling};
use crate::metrics::{Normalise, exact_match_rate};
use crate::models::Model;
use crate::storage::atomic_write;
use crate::tensor::Tensor;
use serde_json::json;
use std::path::PathBuf;
use std::time::Instant;

#[derive(Debug, clap::Args)]
pub(super) struct EvalArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// The prompt; without it the model alone is scored (zero-shot). Repeat it to score several in one pass, and what they say
    /// together
    #[arg(long = "prompt", value_name = "PATH")]
    prompts: Vec<PathBuf>,
    /// The labelled rows: .jsonl, .csv or .tsv
    #[arg(long, value_name = "FILE")]
    data: PathBuf,
    #[command(flatten)]
    rows: DataArgs,
    #[command(flatten)]
    few_shot: FewShotArgs,
    /// A label to rank; repeat it. Without it those found in the data
    #[arg(long = "label", value_name = "TEXT")]
    labels: Vec<String>,
    /// A label's score is the sum or the mean of its tokens' log-probabilities
    #[arg(long, value_parser = ["sum", "mean"], default_value = "sum")]
    score: String,
    /// Generate instead, and count texts that equal the target
    #[arg(long)]
    generate: bool,
    /// With --generate, end a text where this stands in it; repeat it
    #[arg(long, value_name = "TEXT", requires = "generate", allow_hyphen_values = true)]
    stop: Vec<String>,
    /// New tokens of a generated text, at most
    #[arg(long, value_name = "N", default_value_t = 32)]
    max_new_tokens: usize,
    /// Examples that go through the model together
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..))]
    batch_size: u32,
    /// Only the first rows
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// Write each row's label and prediction to this .jsonl file
    #[arg(long, value_name = "FILE")]
    predictions: Option<PathBuf>,
    /// Write over an existing file
    #[arg(long)]
    force: bool,
}

pub(super) fn run(args: &EvalArgs, terminal: &Terminal) -> Result<()> {
    let start = Instant::now();
    if let Some(path) = &args.predictions {
        refuse_to_overwrite(path, args.force)?;
    }
    let model = args.model.open()?;
    let prompts = match args.prompts.as_slice() {
        [] => vec![prompt_for(&model, None)?],
        paths => paths.iter().map(|path| prompt_for(&model, Some(path))).collect::<Result<Vec<_>>>()?,
    };
    if prompts.len() > 1 && args.generate {
        return Err(Error::usage(Place::item("--prompt"), "one prompt beside --generate", prompts.len().to_string())
            .hint("several prompts are compared by their labels' ranks: leave out --generate"));
    }
    let virtual_tokens: Vec<usize> = prompts.iter().map(Tensor::rows).collect();
    let few_shot = args.few_shot.choose(&model, &args.rows.options(&model, 0)?)?;
    let prompts = match &few_shot {
        Some(few) => prompts.iter().map(|prompt| few.in_front(&model, prompt)).collect::<Result<Vec<_>>>()?,
        None => prompts,
    };
    let longest = prompts.iter().map(Tensor::rows).max().unwrap_or(0);
    let mut dataset = args.rows.load(&args.data, &model, longest)?;
    left_out(&dataset).iter().for_each(|text| terminal.note(text));
    // Labels come from all rows, so that a limit changes nothing but the number of rows.
    let all_labels = if args.generate { None } else { Some(labels(args, &model, &dataset)?) };
    dataset.examples.truncate(args.limit.unwrap_or(usize::MAX));
    if dataset.examples.is_empty() {
        return Err(Error::input(Place::file(&args.data), "at least one row", "none")
            .hint("no row is left by --limit, --max-length and --on-long"));
    }
    few_shot.iter().for_each(|few| few.continue_with(&mut dataset));
    let (mut result, text) = match (&all_labels, prompts.as_slice()) {
        (Some(labels), [prompt]) => (by_ranking(args, &model, prompt, &dataset, labels, terminal)?, None),
        (None, [prompt]) => (by_generating(args, &model, prompt, &dataset, terminal)?, None),
        (Some(labels), prompts) => {
            let (result, text) = several::by_ranking(args, &model, prompts, &dataset, labels, terminal)?;
            (result, Some(text))
        }
        (None, _) => return Err(Error::op("eval", "one prompt to generate with", prompts.len().to_string())),
    };
    result["rows"] = json!(dataset.examples.len());
    result["skipped"] = json!(dataset.skipped.too_long);
    result["truncated"] = json!(dataset.skipped.truncated);
    result["num_virtual_tokens"] = match virtual_tokens.as_slice() {
        [one] => json!(one),
        several => json!(several),
    };
    if let Some(few) = &few_shot {
        result["few_shot"] = json!(few.lines.len());
        result["few_shot_tokens"] = json!(few.ids.len());
        result["few_shot_lines"] = json!(few.lines);
    }
    result["seconds"] = json!(start.elapsed().as_secs_f64());
    let numbers: Vec<String> = result
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(_, value)| value.is_number())
        .map(|(name, value)| format!("{name:<20} {value}"))
        .collect();
    terminal.result(&result, &format!("{}{}", text.unwrap_or_default(), numbers.join("\n")))
}

fn labels(args: &EvalArgs, model: &Model, dataset: &Dataset) -> Result<Labels> {
    let options = args.rows.options(model, 0)?;
    let encoder = encoder(model).map(|tokenizer| TextEncoder::new(tokenizer, &options)).transpose()?;
    if args.labels.is_empty() {
        return Labels::of(dataset, encoder.as_ref());
    }
    model.require_tokenizer()?;
    match encoder {
        Some(encoder) => Labels::encode(&args.labels, &encoder),
        None => Labels::of(dataset, None),
    }
}

fn by_ranking(
    args: &EvalArgs,
    model: &Model,
    prompt: &Tensor,
    dataset: &Dataset,
    labels: &Labels,
    terminal: &Terminal,
) -> Result<serde_json::Value> {
    let mut progress = progress(terminal, "ranked");
    let found = rank(model, prompt, dataset, labels, score(args), args.batch_size as usize, &mut progress)?;
    write_predictions(args, labels, &found)?;
    let mut result = serde_json::to_value(&found)
        .map_err(|error| Error::op("eval", "a result that JSON can hold", error.to_string()))?;
    result["labels"] = json!(labels.texts());
    Ok(result)
}

fn score(args: &EvalArgs) -> Score {
    if args.score == "mean" { Score::Mean } else { Score::Sum }
}

fn write_predictions(args: &EvalArgs, labels: &Labels, found: &Evaluation) -> Result<()> {
    let Some(path) = &args.predictions else { return Ok(()) };
    let text = |label: usize| &labels.texts()[label];
    let lines = found.predictions.iter().map(|row| {
        let scores: serde_json::Map<_, _> =
            row.scores.iter().enumerate().map(|(label, score)| (text(label).clone(), json!(score))).collect();
        json!({"line": row.line, "label": text(row.truth), "predicted": text(row.predicted), "scores": scores})
    });
    let content: String = lines.map(|line| format!("{line}\n")).collect();
    atomic_write(path, content.as_bytes())
}

fn by_generating(
    args: &EvalArgs,
    model: &Model,
    prompt: &Tensor,
    dataset: &Dataset,
    terminal: &Terminal,
) -> Result<serde_json::Value> {
    let limits = Limits { new_tokens: args.max_new_tokens, stops: &args.stop };
    let texts = generated(model, prompt, dataset, args.batch_size as usize, limits, progress(terminal, "generated"))?;
    if let Some(path) = &args.predictions {
        let lines = dataset.examples.iter().zip(&texts);
        let content: String = lines
            .map(|(row, (target, text))| format!("{}\n", json!({"line": row.line, "label": target, "predicted": text})))
            .collect();
        atomic_write(path, content.as_bytes())?;
    }
    let exact = exact_match_rate(texts.iter().map(|(target, text)| (text.as_str(), target.as_str())), Normalise::Trim);
    let loss = mean_loss(model, prompt, dataset, args.batch_size as usize, &mut |_, _| ())?;
    Ok(json!({"exact_match": exact, "loss": loss}))
}

/// Where generated texts end, besides at the end token.
#[derive(Clone, Copy)]
pub(super) struct Limits<'a> {
    /// New tokens, at most.
    pub(super) new_tokens: usize,
    /// Texts that end it, not counted to it.
    pub(super) stops: &'a [String],
}

/// Target and generated text of every row. Of a target of one line the first line generated counts.
pub(super) fn generated(
    model: &Model,
    prompt: &Tensor,
    dataset: &Dataset,
    batch_size: usize,
    limits: Limits<'_>,
    mut progress: impl FnMut(usize, usize),
) -> Result<Vec<(String, String)>> {
    let tokenizer = model.require_tokenizer()?;
    let generator = Generator::new(model, prompt)?;
    let mut texts = Vec::with_capacity(dataset.examples.len());
    for examples in dataset.examples.chunks(batch_size) {
        let inputs: Vec<&[u32]> = examples.iter().map(|example| example.input_ids.as_slice()).collect();
        let mut stop = |new: &[u32]| ends(tokenizer, new, limits.stops);
        let new = generator.generate(&inputs, limits.new_tokens, Sampling::GREEDY, &mut stop)?;
        for (example, ids) in examples.iter().zip(new) {
            let target = match &example.target_text {
                Some(text) => text.clone(),
                None => tokenizer.decode(&example.target_ids, true)?,
            };
            let mut text = tokenizer.decode(&ids, true)?;
            text.truncate(cut(&text, limits.stops).unwrap_or(text.len()));
            // A target of one line is compared with the first line: models trained without an end token go on.
            let text = if target.trim().contains('\n') {
                text.as_str()
            } else {
                text.trim_start().lines().next().unwrap_or("")
            };
            texts.push((target, text.trim().to_string()));
        }
        progress(texts.len(), dataset.examples.len());
    }
    Ok(texts)
}

/// Says how far a long evaluation has come, every few seconds.
fn progress<'a>(terminal: &'a Terminal, what: &'a str) -> impl FnMut(usize, usize) + 'a {
    let mut last = Instant::now();
    move |done, total| {
        if last.elapsed().as_secs() >= 5 || (done == total && last.elapsed().as_secs() >= 1) {
            terminal.note(&format!("{what} {done} of {total} rows"));
            last = Instant::now();
        }
    }
}
