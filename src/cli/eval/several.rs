//! Several prompts on the same rows, in one pass.

use super::{EvalArgs, progress, score};
use crate::cli::{Terminal, printable};
use crate::data::Dataset;
use crate::error::Result;
use crate::eval::{Ensemble, Evaluation, Labels, ensemble, rank_all};
use crate::metrics::Sample;
use crate::models::Model;
use crate::storage::atomic_write;
use crate::tensor::Tensor;
use serde_json::{Value, json};

/// A metric's name, how it is read off an evaluation, and whether more is better.
type Metric = (&'static str, fn(&Evaluation) -> f64, bool);

const METRICS: [Metric; 4] = [
    ("loss", |found| found.loss, false),
    ("accuracy", |found| found.accuracy, true),
    ("balanced_accuracy", |found| found.balanced_accuracy, true),
    ("macro_f1", |found| found.macro_f1, true),
];

/// What each prompt reaches, their mean and spread, the best of them, and what they say together; as JSON and as text.
pub(super) fn by_ranking(
    args: &EvalArgs,
    model: &Model,
    prompts: &[Tensor],
    dataset: &Dataset,
    labels: &Labels,
    terminal: &Terminal,
) -> Result<(Value, String)> {
    let mut progress = progress(terminal, "ranked");
    let batch_size = args.batch_size as usize;
    let found = rank_all(model, prompts, dataset, labels, score(args), batch_size, &mut progress)?;
    let joint = ensemble(labels.texts().len(), &found)?;
    write_predictions(args, labels, &found, &joint)?;

    let paths: Vec<String> = args.prompts.iter().map(|path| path.display().to_string()).collect();
    let of_prompts: Vec<Value> = found
        .iter()
        .zip(&paths)
        .map(|(one, path)| {
            let metrics = METRICS.iter().map(|(name, read, _)| ((*name).to_owned(), json!(read(one))));
            let mut object: serde_json::Map<_, _> = [("path".to_owned(), json!(path))].into_iter().collect();
            object.extend(metrics);
            Value::Object(object)
        })
        .collect();
    let (mut over_prompts, mut best) = (serde_json::Map::new(), serde_json::Map::new());
    let mut lines = vec![table_line("prompt", METRICS.map(|(name, ..)| name.to_owned()))];
    for (one, path) in found.iter().zip(&paths) {
        lines.push(table_line(&printable(path), METRICS.map(|(_, read, _)| format!("{:.4}", read(one)))));
    }
    let mut cells = (Vec::new(), Vec::new());
    for (name, read, is_greater_better) in METRICS {
        let values: Vec<f64> = found.iter().map(read).collect();
        let sign = if is_greater_better { 1.0 } else { -1.0 };
        let first =
            (0..values.len()).fold(0, |best, at| if sign * values[at] > sign * values[best] { at } else { best });
        best.insert(name.to_owned(), json!({"value": values[first], "path": paths[first]}));
        cells.1.push(format!("{:.4}", values[first]));
        if let Some(sample) = Sample::of(&values) {
            over_prompts.insert(name.to_owned(), json!(sample));
            cells.0.push(sample.to_string());
        }
    }
    lines.push(table_line("mean ± sd", cells.0));
    lines.push(table_line("best", cells.1));
    for (name, joint) in [("majority vote", &joint.majority_vote), ("mean probability", &joint.mean_probability)] {
        let metrics = [joint.accuracy, joint.balanced_accuracy, joint.macro_f1].map(|value| format!("{value:.4}"));
        lines.push(table_line(name, [String::new()].into_iter().chain(metrics)));
    }
    let result = json!({
        "prompts": of_prompts, "over_prompts": over_prompts, "best": best, "ensemble": joint, "labels": labels.texts(),
    });
    Ok((result, lines.join("\n") + "\n\n"))
}

fn table_line(name: &str, cells: impl IntoIterator<Item = String>) -> String {
    let cells: String = cells.into_iter().map(|cell| format!("  {cell:>17}")).collect();
    format!("{name:<24}{cells}").trim_end().to_owned()
}

fn write_predictions(args: &EvalArgs, labels: &Labels, found: &[Evaluation], joint: &Ensemble) -> Result<()> {
    let (Some(path), Some(first)) = (&args.predictions, found.first()) else { return Ok(()) };
    let text = |label: usize| &labels.texts()[label];
    let lines = first.predictions.iter().enumerate().map(|(index, row)| {
        let each: Vec<&String> = found.iter().map(|one| text(one.predictions[index].predicted)).collect();
        json!({
            "line": row.line, "label": text(row.truth), "predicted": each,
            "majority_vote": text(joint.majority_vote.predicted[index]),
            "mean_probability": text(joint.mean_probability.predicted[index]),
        })
    });
    let content: String = lines.map(|line| format!("{line}\n")).collect();
    atomic_write(path, content.as_bytes())
}
