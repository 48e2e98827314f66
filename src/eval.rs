//! How good a prompt is: the loss of held-out rows, and how often the right label ranks first.
//!
//! Label ranking scores every candidate behind (prompt, input) by its tokens' log-probability, in one packed forward
//! pass per batch: an input's rows stand once, labels of several tokens continue it, and each row's softmax is computed
//! once for all the tokens asked of it.

use crate::data::{Dataset, Example, TextEncoder};
use crate::error::{Error, Place, Result};
use crate::layout::{Layout, Sequence};
use crate::metrics::Confusion;
use crate::models::Model;
use crate::step::Batch;
use crate::tape::{Tape, Var};
use crate::tensor::Tensor;
use serde::Serialize;
use std::collections::BTreeMap;

/// The candidates of a ranking.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Labels {
    texts: Vec<String>,
    ids: Vec<Vec<u32>>,
}

impl Labels {
    /// The distinct targets of `dataset`, in the order of their texts (of their ids where rows have no text).
    ///
    /// # Errors
    /// [`Error::Input`] if there are fewer than two, so that there is nothing to choose.
    pub fn of(dataset: &Dataset) -> Result<Self> {
        let mut distinct: BTreeMap<(String, &[u32]), ()> = BTreeMap::new();
        for example in &dataset.examples {
            distinct.insert((text_of(example), &example.target_ids), ());
        }
        let labels = distinct.into_keys().map(|(text, ids)| (text, ids.to_vec())).collect();
        Self::checked(labels).map_err(|error| error.in_file(&dataset.path))
    }

    /// The given labels, as `encoder` puts them behind an input.
    ///
    /// # Errors
    /// [`Error::Input`] if there are fewer than two, one has no tokens, or two have the same.
    pub fn encode(texts: &[String], encoder: &TextEncoder<'_>) -> Result<Self> {
        let encoded = texts.iter().map(|text| Ok((text.clone(), encoder.target("input", text)?)));
        Self::checked(encoded.collect::<Result<_>>()?)
    }

    fn checked(labels: Vec<(String, Vec<u32>)>) -> Result<Self> {
        let place = || Place::item("labels");
        if labels.len() < 2 {
            return Err(Error::input(place(), "at least two labels to choose from", labels.len().to_string()));
        }
        let (texts, ids): (Vec<_>, Vec<_>) = labels.into_iter().unzip();
        for (index, own) in ids.iter().enumerate() {
            if let Some(other) = ids[..index].iter().position(|other| other == own) {
                let got = format!("{:?} and {:?} with the same tokens", texts[other], texts[index]);
                return Err(Error::input(place(), "labels that differ in their tokens", got));
            }
        }
        Ok(Self { texts, ids })
    }

    /// The labels as text.
    pub fn texts(&self) -> &[String] {
        &self.texts
    }

    /// The labels as token ids.
    pub fn ids(&self) -> &[Vec<u32>] {
        &self.ids
    }

    fn position(&self, example: &Example) -> Result<usize> {
        self.ids.iter().position(|ids| *ids == example.target_ids).ok_or_else(|| {
            Error::input(Place::default(), "a target among the labels", format!("{:?}", text_of(example)))
                .on_line(example.line)
                .hint(format!("the labels are {}", self.texts.join(", ")))
        })
    }
}

fn text_of(example: &Example) -> String {
    match &example.target_text {
        Some(text) => text.clone(),
        None => format!("{:?}", example.target_ids),
    }
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
/// that the model does not have.
pub fn rank(
    model: &Model,
    prompt: &Tensor,
    dataset: &Dataset,
    labels: &Labels,
    score: Score,
    batch_size: usize,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Evaluation> {
    let rows = dataset.examples.len();
    let mut predictions = Vec::with_capacity(rows);
    let (mut nll, mut label_tokens) = (0.0, 0);
    for batch in dataset.examples.chunks(batch_size.max(1)) {
        let found = rank_batch(model, prompt, batch, labels).map_err(|error| error.in_file(&dataset.path))?;
        for (example, logs) in batch.iter().zip(found) {
            let truth = labels.position(example).map_err(|error| error.in_file(&dataset.path))?;
            nll -= logs[truth];
            label_tokens += labels.ids[truth].len();
            let scores: Vec<f64> = match score {
                Score::Sum => logs,
                Score::Mean => logs.iter().zip(&labels.ids).map(|(log, ids)| log / ids.len() as f64).collect(),
            };
            let first =
                (0..scores.len()).fold(0, |best, label| if scores[label] > scores[best] { label } else { best });
            predictions.push(Prediction { line: example.line, truth, predicted: first, scores });
        }
        progress(predictions.len(), rows);
    }
    let truth: Vec<usize> = predictions.iter().map(|row| row.truth).collect();
    let predicted: Vec<Option<usize>> = predictions.iter().map(|row| Some(row.predicted)).collect();
    let confusion = Confusion::of(labels.texts.len(), &truth, &predicted)?;
    Ok(Evaluation {
        rows,
        loss: nll / label_tokens.max(1) as f64,
        label_tokens,
        accuracy: confusion.accuracy(),
        balanced_accuracy: confusion.balanced_accuracy(),
        macro_f1: confusion.macro_f1(),
        predictions,
    })
}

/// The summed log-probability of each label, for each example.
fn rank_batch(model: &Model, prompt: &Tensor, examples: &[Example], labels: &Labels) -> Result<Vec<Vec<f64>>> {
    if prompt.rows() == 0
        && let Some(example) = examples.iter().find(|example| example.input_ids.is_empty())
    {
        return Err(
            Error::input(Place::default(), "an input, as there is no prompt", "an empty one").on_line(example.line)
        );
    }
    let mut sequences = Vec::new();
    for example in examples {
        let root = sequences.len();
        let ids = &example.input_ids;
        sequences.push(Sequence { keep_last: true, score_end: true, ..Sequence::example(0, ids, ids.len()) });
        // The first token of every label is read off the input's end; only longer labels have rows of their own.
        let longer = labels.ids.iter().filter(|ids| ids.len() > 1);
        sequences.extend(longer.map(|ids| Sequence { parent: Some(root), ..Sequence::example(0, ids, 1) }));
    }
    let layout = Layout::causal(&[prompt.rows()], &sequences)?;
    let mut wanted = Vec::new();
    let mut row = 0;
    for _ in examples {
        let end = row;
        row += 1;
        for ids in &labels.ids {
            wanted.push((end, ids[0]));
            for &id in &ids[1..] {
                wanted.push((row, id));
                row += 1;
            }
        }
    }
    let logs = model.device().run(|| {
        let hidden = model.hidden(&mut Tape::new(), &Var::constant(prompt.clone()), &layout, None)?;
        model.log_probabilities(&hidden, &wanted)
    })?;
    let mut logs = logs.into_iter();
    let mut of_label = |ids: &Vec<u32>| logs.by_ref().take(ids.len()).sum::<f64>();
    Ok(examples.iter().map(|_| labels.ids.iter().map(&mut of_label).collect()).collect())
}

/// The mean negative log-likelihood of all label tokens of `dataset`, in nats.
///
/// # Errors
/// As [`Model::loss`].
pub fn mean_loss(
    model: &Model,
    prompt: &Tensor,
    dataset: &Dataset,
    batch_size: usize,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<f64> {
    let (mut nll, mut label_tokens, mut done) = (0.0, 0, 0);
    for examples in dataset.examples.chunks(batch_size.max(1)) {
        let mut batch = Batch::new();
        for example in examples {
            batch.push(&example.input_ids, &example.target_ids).map_err(|error| error.on_line(example.line))?;
        }
        let loss = model.loss(prompt, &batch).map_err(|error| error.in_file(&dataset.path))?;
        nll += loss.by_example.iter().sum::<f64>();
        label_tokens += loss.label_tokens;
        done += examples.len();
        progress(done, dataset.examples.len());
    }
    Ok(nll / label_tokens.max(1) as f64)
}
