//! Scoring prompts on the held-out rows of a configuration, or on files of their own.

use super::super::eval::{Limits, generated};
use super::super::few_shot::{few_shot, joiner};
use super::super::options::{encoder, left_out, longest};
use super::super::prepare::{Data, Files, labels_of};
use crate::cli::Terminal;
use crate::config::{Metric, TrainConfig};
use crate::data::Dataset;
use crate::error::Result;
use crate::eval::{Evaluation, Joint, Labels, Score, check_rows, mean_loss, rank_all};
use crate::metrics::{Normalise, exact_match_rate};
use crate::models::Model;
use crate::prompt::FewShot;
use crate::tensor::Tensor;
use std::path::PathBuf;

/// New tokens that are generated for an exact match, beyond the longest target.
const SPARE_TOKENS: usize = 4;

/// Rows to score on.
pub(super) enum Place {
    /// Those by which the best checkpoint was chosen.
    HeldOut,
    /// A file under a name.
    File(String, PathBuf),
}

impl Place {
    pub(super) fn name(&self) -> &str {
        match self {
            Self::HeldOut => super::HELD_OUT,
            Self::File(name, _) => name,
        }
    }
}

/// The metric of an evaluation by ranking.
pub(super) fn metric_of(metric: Metric, found: &Evaluation) -> f64 {
    match metric {
        Metric::Accuracy => found.accuracy,
        Metric::BalancedAccuracy => found.balanced_accuracy,
        Metric::MacroF1 => found.macro_f1,
        Metric::Loss | Metric::ExactMatch => found.loss,
    }
}

/// The metric of an ensemble, one of those that are about labels.
pub(super) fn joint_metric(metric: Metric, found: &Joint) -> f64 {
    match metric {
        Metric::BalancedAccuracy => found.balanced_accuracy,
        Metric::MacroF1 => found.macro_f1,
        _ => found.accuracy,
    }
}

pub(super) struct Scorer<'a> {
    config: &'a TrainConfig,
    model: &'a Model,
    terminal: &'a Terminal,
    files: Files,
}

impl<'a> Scorer<'a> {
    pub(super) fn new(config: &'a TrainConfig, model: &'a Model, terminal: &'a Terminal) -> Self {
        Self { config, model, terminal, files: Files::default() }
    }

    /// The rows of `place` with room for `prompt_rows` rows in front.
    fn rows(&mut self, place: &Place, prompt_rows: usize) -> Result<Dataset> {
        let dataset = match place {
            Place::HeldOut => {
                let num_virtual_tokens = prompt_rows.div_ceil(self.config.prompt_on.rows(1));
                let config = TrainConfig { num_virtual_tokens, ..self.config.clone() };
                let data = Data::load(&config, self.model, &mut self.files)?;
                data.held_out
                    .map(|rows| (*rows).clone())
                    .ok_or_else(|| crate::error::Error::op("experiment", "held-out rows", "none"))?
            }
            Place::File(_, path) => {
                let mut options = self.config.example_options(self.model.config())?;
                options.max_length = longest(self.model, prompt_rows, Some(self.config.max_length));
                Dataset::load(path, &options, encoder(self.model))?
            }
        };
        left_out(&dataset).iter().for_each(|text| self.terminal.note(text));
        Ok(dataset)
    }

    /// The labels of the task: those given, else those of the training rows.
    fn labels(&mut self) -> Result<Labels> {
        let data = Data::load(self.config, self.model, &mut self.files)?;
        labels_of(self.config, self.model, &data.train, &data.options)
    }

    /// `examples` training rows as they stand in the context.
    pub(super) fn few_shot(&self, examples: usize, seed: u64, text: Option<&str>) -> Result<FewShot> {
        let options = self.config.example_options(self.model.config())?;
        let joiner = joiner(self.model, text)?;
        few_shot(self.model, &self.config.train_file, &options, (examples, seed), &joiner)
    }

    /// Finds out now what is wrong with the rows of `place` behind prompts of these numbers of rows.
    pub(super) fn check(&mut self, place: &Place, prompt_rows: &[usize]) -> Result<()> {
        let dataset = self.rows(place, prompt_rows.iter().copied().max().unwrap_or(0))?;
        match self.config.metric_for_best_model {
            Metric::Loss | Metric::ExactMatch => Ok(()),
            _ => check_rows(self.model, prompt_rows, &dataset, &self.labels()?),
        }
    }

    /// The evaluation of each prompt by ranking, in one pass, and the number of labels.
    pub(super) fn evaluations(&mut self, prompts: &[Tensor], place: &Place) -> Result<(Vec<Evaluation>, usize)> {
        let rows = prompts.iter().map(Tensor::rows).max().unwrap_or(0);
        let dataset = self.rows(place, rows)?;
        self.ranked(prompts, &dataset)
    }

    fn ranked(&mut self, prompts: &[Tensor], dataset: &Dataset) -> Result<(Vec<Evaluation>, usize)> {
        let labels = self.labels()?;
        let size = self.config.per_device_eval_batch_size;
        let found = rank_all(self.model, prompts, dataset, &labels, Score::Sum, size, &mut |_, _| ())?;
        Ok((found, labels.texts().len()))
    }

    /// The metric of each prompt on the rows of `place`, with examples in the context if there are any.
    pub(super) fn scores(&mut self, prompts: &[Tensor], place: &Place, few: Option<&FewShot>) -> Result<Vec<f64>> {
        let with_examples;
        let prompts = match few {
            Some(few) => {
                let all = prompts.iter().map(|prompt| few.in_front(self.model, prompt)).collect::<Result<Vec<_>>>()?;
                with_examples = all;
                &with_examples
            }
            None => prompts,
        };
        let longest = prompts.iter().map(Tensor::rows).max().unwrap_or(0);
        self.terminal.note(&format!("scoring on {}", place.name()));
        let mut dataset = self.rows(place, longest)?;
        if let Some(few) = few {
            few.continue_with(&mut dataset);
        }
        let (metric, size) = (self.config.metric_for_best_model, self.config.per_device_eval_batch_size);
        match metric {
            Metric::Accuracy | Metric::BalancedAccuracy | Metric::MacroF1 => {
                let (found, _) = self.ranked(prompts, &dataset)?;
                Ok(found.iter().map(|one| metric_of(metric, one)).collect())
            }
            Metric::Loss => {
                prompts.iter().map(|prompt| mean_loss(self.model, prompt, &dataset, size, &mut |_, _| ())).collect()
            }
            Metric::ExactMatch => prompts.iter().map(|prompt| self.exact_match(prompt, &dataset, size)).collect(),
        }
    }

    fn exact_match(&self, prompt: &Tensor, dataset: &Dataset, size: usize) -> Result<f64> {
        let longest = dataset.examples.iter().map(|example| example.target_ids.len()).max().unwrap_or(0);
        let limits = Limits { new_tokens: longest + SPARE_TOKENS, stops: &[] };
        let texts = generated(self.model, prompt, dataset, size, limits, |_, _| ())?;
        let pairs = texts.iter().map(|(target, text)| (text.as_str(), target.as_str()));
        Ok(exact_match_rate(pairs, Normalise::Trim))
    }
}
