//! How good a prompt is: the loss of held-out rows, and how often the right label ranks first.
//!
//! Label ranking scores every candidate behind (prompt, input) by its tokens' log-probability, in one packed forward
//! pass per batch: an input's rows stand once, labels of several tokens continue it, and each row's softmax is computed
//! once for all the tokens asked of it.

use crate::data::{Dataset, Example};
use crate::error::{Error, Place, Result};
use crate::layout::{Input, Layout, Sequence};
use crate::metrics::Confusion;
use crate::models::Model;
use crate::step::Batch;
use crate::tape::{Tape, Var};
use crate::tensor::Tensor;
use serde::Serialize;

mod ensemble;
mod labels;

pub use ensemble::{Ensemble, Joint, ensemble};
pub use labels::Labels;
use labels::Row;

/// The most rows of a pass beyond its first example: many long labels must not take a whole batch's memory at once.
const MAX_ROWS: usize = 16 * 1024;

/// That `target` tokens fit behind the prompt and the example's input, and have something before them.
fn check_room(model: &Model, prompt_rows: usize, example: &Example, target: usize) -> Result<()> {
    let input = example.input_ids.len();
    let in_front = match model.config().is_encoder_decoder() {
        true => model.prompt_place().on.split(prompt_rows)?.0,
        false => prompt_rows,
    };
    if in_front + input == 0 {
        return Err(
            Error::input(Place::default(), "an input, as there is no prompt", "an empty one").on_line(example.line)
        );
    }
    // The last token is no row of the stream: nothing follows it.
    let (needed, limit) = (prompt_rows + input + target.saturating_sub(1), model.config().max_position_embeddings);
    if needed > limit {
        let expected = format!("at most {limit} positions for prompt, input and label, as the model has");
        return Err(Error::input(Place::default(), expected, needed.to_string()).on_line(example.line).hint(
            "lower max_length and set on_long to truncate or skip, or use a shorter prompt, label or few-shot context",
        ));
    }
    Ok(())
}

/// How the log-probabilities of a label's tokens become its score.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Score {
    /// Their sum: the probability of the label.
    #[default]
    Sum,
    /// Their mean, so that long labels are not at a disadvantage.
    Mean,
}

/// What a ranking found.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Evaluation {
    /// Rows scored.
    pub rows: usize,
    /// Mean negative log-likelihood of the true labels' tokens, in nats.
    pub loss: f64,
    /// Those tokens.
    pub label_tokens: usize,
    /// The part of rows whose label ranked first.
    pub accuracy: f64,
    /// The mean of the classes' accuracies.
    pub balanced_accuracy: f64,
    /// The mean of the classes' F1 scores.
    pub macro_f1: f64,
    /// For each row its line, its label and the one that ranked first.
    #[serde(skip)]
    pub predictions: Vec<Prediction>,
}

/// What a ranking says of one row.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Prediction {
    /// The row's line in its file.
    pub line: u64,
    /// The index of its label.
    pub truth: usize,
    /// The index of the label that ranked first; of equals the first.
    pub predicted: usize,
    /// The score of each label.
    pub scores: Vec<f64>,
}

/// Ranks `labels` for every row of `dataset` behind `prompt` `[P, d]`; P may be 0. `progress` hears how many of how many
/// rows are done.
///
/// # Errors
/// [`Error::Input`] for a row whose target is no label, an empty input where there is no prompt, or tokens and positions
/// that the model does not have; [`Error::Diverged`] where a score is not finite.
pub fn rank(
    model: &Model,
    prompt: &Tensor,
    dataset: &Dataset,
    labels: &Labels,
    score: Score,
    batch_size: usize,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Evaluation> {
    let mut found = rank_all(model, std::slice::from_ref(prompt), dataset, labels, score, batch_size, progress)?;
    found.pop().ok_or_else(|| Error::op("rank", "an evaluation of the prompt", "none"))
}

/// [`rank`] for several prompts, of any lengths, in one pass over the rows: a batch's stream is
/// `[prompt 1]…[prompt N][rows]`, where each row stands once behind every prompt. What comes out is what [`rank`] gives for
/// each prompt alone, but for rounding: products of other sizes may add in another order.
///
/// # Errors
/// As [`rank`]; [`Error::Op`] for no prompts.
pub fn rank_all(
    model: &Model,
    prompts: &[Tensor],
    dataset: &Dataset,
    labels: &Labels,
    score: Score,
    batch_size: usize,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Vec<Evaluation>> {
    let in_file = |error: Error| error.in_file(&dataset.path);
    if prompts.is_empty() {
        return Err(Error::op("rank_all", "at least one prompt", "none"));
    }
    let prompt_rows: Vec<usize> = prompts.iter().map(Tensor::rows).collect();
    let rows = checked_rows(model, &prompt_rows, dataset, labels)?;
    let together = stacked(model, prompts)?;
    let mut ranked: Vec<Ranked> = prompts.iter().map(|_| Ranked::default()).collect();
    // An encoder's prompt rows see the row behind them: each has its own.
    let copied = if model.config().is_encoder_decoder() { together.rows() } else { 0 };
    let mut done = 0;
    while done < rows.len() {
        let batch = next_batch(&rows[done..], batch_size, prompts.len(), copied);
        let found = rank_batch(model, &together, &prompt_rows, batch).map_err(in_file)?;
        for (ranked, logs) in ranked.iter_mut().zip(found.chunks_exact(batch.len())) {
            for (row, logs) in batch.iter().zip(logs) {
                ranked.push(row, logs, score).map_err(in_file)?;
            }
        }
        done += batch.len();
        progress(done, rows.len());
    }
    ranked.into_iter().map(|ranked| ranked.evaluation(labels.texts().len())).collect()
}

/// Checks that every row of `dataset` can be ranked behind prompts of these numbers of rows, without the work.
///
/// # Errors
/// Those of [`rank_all`] that rows are to blame for.
pub fn check_rows(model: &Model, prompt_rows: &[usize], dataset: &Dataset, labels: &Labels) -> Result<()> {
    checked_rows(model, prompt_rows, dataset, labels).map(drop)
}

fn checked_rows<'a>(
    model: &Model,
    prompt_rows: &[usize],
    dataset: &'a Dataset,
    labels: &'a Labels,
) -> Result<Vec<Row<'a>>> {
    // What suits the shortest and the longest suits all between.
    let extremes = [prompt_rows.iter().min(), prompt_rows.iter().max()];
    let rows = dataset.examples.iter().map(|example| {
        let row = labels.row(example)?;
        for &prompt_rows in extremes.into_iter().flatten() {
            check_room(model, prompt_rows, example, row.longest())?;
        }
        Ok(row)
    });
    rows.collect::<Result<Vec<_>>>().map_err(|error| error.in_file(&dataset.path))
}

/// The prompts one below the other.
fn stacked(model: &Model, prompts: &[Tensor]) -> Result<Tensor> {
    if let [one] = prompts {
        return Ok(one.clone());
    }
    let mut values = Vec::new();
    for prompt in prompts {
        let rows = prompt.to_f64_vec()?;
        // Of another width it would shift all that follow.
        model.prompt_from(prompt.rows(), &rows)?;
        values.extend(rows);
    }
    model.prompt_from(prompts.iter().map(Tensor::rows).sum(), &values)
}

/// The rows ranked so far behind one prompt.
#[derive(Default)]
struct Ranked {
    predictions: Vec<Prediction>,
    nll: f64,
    label_tokens: usize,
}

impl Ranked {
    /// Adds a row by its labels' summed log-probabilities.
    fn push(&mut self, row: &Row<'_>, logs: &[f64], score: Score) -> Result<()> {
        if let Some(bad) = logs.iter().find(|log| !log.is_finite()) {
            return Err(Error::diverged(Place::default(), "finite log-probabilities of the labels", bad.to_string())
                .on_line(row.example.line)
                .hint("prompt or weights hold values too large for the type computed in"));
        }
        self.nll -= logs[row.truth];
        self.label_tokens += row.labels[row.truth].len();
        let scores: Vec<f64> = match score {
            Score::Sum => logs.to_vec(),
            Score::Mean => logs.iter().zip(row.labels).map(|(log, ids)| log / ids.len() as f64).collect(),
        };
        let predicted = first_of_the_best(&scores);
        self.predictions.push(Prediction { line: row.example.line, truth: row.truth, predicted, scores });
        Ok(())
    }

    fn evaluation(self, labels: usize) -> Result<Evaluation> {
        let truth: Vec<usize> = self.predictions.iter().map(|row| row.truth).collect();
        let predicted: Vec<Option<usize>> = self.predictions.iter().map(|row| Some(row.predicted)).collect();
        let confusion = Confusion::of(labels, &truth, &predicted)?;
        Ok(Evaluation {
            rows: self.predictions.len(),
            loss: self.nll / self.label_tokens.max(1) as f64,
            label_tokens: self.label_tokens,
            accuracy: confusion.accuracy(),
            balanced_accuracy: confusion.balanced_accuracy(),
            macro_f1: confusion.macro_f1(),
            predictions: self.predictions,
        })
    }
}

/// The index of the greatest score; of equals the first.
fn first_of_the_best(scores: &[f64]) -> usize {
    (0..scores.len()).fold(0, |best, index| if scores[index] > scores[best] { index } else { best })
}

/// The first rows that go through the model together behind each of `prompts` prompts: `batch_size`, or fewer where prompts
/// and labels are many and long. Each row brings `copied` rows of prompts.
fn next_batch<'a, 'b>(rows: &'a [Row<'b>], batch_size: usize, prompts: usize, copied: usize) -> &'a [Row<'b>] {
    let mut stream = 0;
    let fits = rows.iter().take(batch_size.max(1)).take_while(|row| {
        stream += row.stream_rows() * prompts + copied;
        stream <= MAX_ROWS
    });
    let count = fits.count().max(1).min(rows.len());
    &rows[..count]
}

/// How `rows` lie behind prompts of `prompt_rows` rows, all rows behind the first prompt before all behind the second, and
/// the (scored row, token) pairs that are asked for: label by label, row by row, prompt by prompt.
fn ranking_layout(model: &Model, prompt_rows: &[usize], rows: &[Row<'_>]) -> Result<(Layout, Vec<(usize, u32)>)> {
    // A decoder's sequences begin behind this token, and belong to an input that stands on the encoder.
    let start = model.config().encoder_decoder.map(|more| [more.decoder_start_token_id]);
    let mut inputs = Vec::new();
    let mut sequences = Vec::new();
    let mut wanted = Vec::new();
    let mut scored = 0;
    for prompt in 0..prompt_rows.len() {
        for row in rows {
            let (root, ids) = (sequences.len(), row.example.input_ids.as_slice());
            let (behind, first) = match &start {
                Some(start) => {
                    inputs.push(Input { prompt, ids });
                    (inputs.len() - 1, start.as_slice())
                }
                None => (prompt, ids),
            };
            let read = Sequence::example(behind, first, first.len());
            sequences.push(Sequence { keep_last: true, score_end: true, ..read });
            sequences
                .extend(row.longer().map(|ids| Sequence { parent: Some(root), ..Sequence::example(behind, ids, 1) }));
            let end = scored;
            scored += 1;
            for ids in row.labels {
                wanted.push((end, ids[0]));
                for &id in &ids[1..] {
                    wanted.push((scored, id));
                    scored += 1;
                }
            }
        }
    }
    let layout = match start {
        Some(_) => Layout::encoder_decoder(prompt_rows, model.prompt_place(), &inputs, &sequences)?,
        None => Layout::causal(prompt_rows, &sequences)?,
    };
    Ok((layout, wanted))
}

/// The summed log-probability of each label, for each row behind each prompt; `prompts` stand one below the other.
fn rank_batch(model: &Model, prompts: &Tensor, prompt_rows: &[usize], rows: &[Row<'_>]) -> Result<Vec<Vec<f64>>> {
    let (layout, wanted) = ranking_layout(model, prompt_rows, rows)?;
    let logs = model.device().run(|| {
        let hidden = model.hidden(&mut Tape::new(), &Var::constant(prompts.clone()), &layout, None)?;
        model.log_probabilities(&hidden, &wanted)
    })?;
    let mut logs = logs.into_iter();
    let mut of_label = |ids: &Vec<u32>| logs.by_ref().take(ids.len()).sum::<f64>();
    let every_row = prompt_rows.iter().flat_map(|_| rows);
    Ok(every_row.map(|row| row.labels.iter().map(&mut of_label).collect()).collect())
}

/// The mean negative log-likelihood of all label tokens of `dataset`, in nats.
///
/// # Errors
/// As [`Model::loss`], naming the file, and the line where an input is empty without a prompt or a row is too long.
pub fn mean_loss(
    model: &Model,
    prompt: &Tensor,
    dataset: &Dataset,
    batch_size: usize,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<f64> {
    let in_file = |error: Error| error.in_file(&dataset.path);
    for example in &dataset.examples {
        check_room(model, prompt.rows(), example, example.target_ids.len()).map_err(in_file)?;
    }
    let (mut nll, mut label_tokens, mut done) = (0.0, 0, 0);
    for examples in dataset.examples.chunks(batch_size.max(1)) {
        let mut batch = Batch::new();
        for example in examples {
            let pushed = batch.push(&example.input_ids, &example.target_ids);
            pushed.map_err(|error| in_file(error.on_line(example.line)))?;
        }
        let loss = model.loss(prompt, &batch).map_err(in_file)?;
        nll += loss.by_example.iter().sum::<f64>();
        label_tokens += loss.label_tokens;
        done += examples.len();
        progress(done, dataset.examples.len());
    }
    Ok(nll / label_tokens.max(1) as f64)
}

#[cfg(test)]
#[path = "eval_tests.rs"]
mod tests;
