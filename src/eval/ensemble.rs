//! Several prompts for one task as one classifier (Lester et al. 2021, §6).

use super::{Evaluation, Prediction, first_of_the_best};
use crate::error::{Error, Result};
use crate::metrics::Confusion;
use serde::Serialize;

/// What the prompts say together, in two ways.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Ensemble {
    /// The label that most prompts rank first, as the paper does it. Of labels with equally many votes the one whose score,
    /// summed over the prompts, is greatest; of equals the first.
    pub majority_vote: Joint,
    /// The label of the greatest mean probability, where a prompt's scores become probabilities by a softmax over the labels.
    pub mean_probability: Joint,
}

/// The predictions of an ensemble, and how good they are.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Joint {
    /// The part of rows whose label was predicted.
    pub accuracy: f64,
    /// The mean of the classes' accuracies.
    pub balanced_accuracy: f64,
    /// The mean of the classes' F1 scores.
    pub macro_f1: f64,
    /// The predicted label of each row.
    #[serde(skip)]
    pub predicted: Vec<usize>,
}

/// Joins the evaluations of several prompts on the same rows, with `labels` labels.
///
/// # Errors
/// [`Error::Op`] for no evaluations, or evaluations of different rows or labels.
pub fn ensemble(labels: usize, evaluations: &[Evaluation]) -> Result<Ensemble> {
    let first = evaluations.first().ok_or_else(|| Error::op("ensemble", "at least one evaluation", "none"))?;
    let truths = |of: &Evaluation| of.predictions.iter().map(|row| (row.line, row.truth)).collect::<Vec<_>>();
    let is_whole = |row: &Prediction| row.scores.len() == labels;
    if evaluations.iter().any(|one| truths(one) != truths(first) || !one.predictions.iter().all(is_whole)) {
        return Err(Error::op("ensemble", format!("evaluations of the same rows by {labels} labels"), "others"));
    }
    let (mut by_votes, mut by_probability) = (Vec::new(), Vec::new());
    for index in 0..first.predictions.len() {
        let (mut votes, mut sums, mut means) = (vec![0usize; labels], vec![0.0; labels], vec![0.0; labels]);
        for row in evaluations.iter().map(|one| &one.predictions[index]) {
            votes[row.predicted] += 1;
            sums.iter_mut().zip(&row.scores).for_each(|(sum, score)| *sum += score);
            means.iter_mut().zip(softmax(&row.scores)).for_each(|(mean, p)| *mean += p / evaluations.len() as f64);
        }
        let most = votes.iter().copied().max().unwrap_or(0);
        let tied = votes.iter().zip(&sums).map(|(&votes, &sum)| if votes == most { sum } else { f64::NEG_INFINITY });
        by_votes.push(first_of_the_best(&tied.collect::<Vec<_>>()));
        by_probability.push(first_of_the_best(&means));
    }
    let truth: Vec<usize> = first.predictions.iter().map(|row| row.truth).collect();
    Ok(Ensemble {
        majority_vote: joint(labels, &truth, by_votes)?,
        mean_probability: joint(labels, &truth, by_probability)?,
    })
}

fn joint(labels: usize, truth: &[usize], predicted: Vec<usize>) -> Result<Joint> {
    let found: Vec<Option<usize>> = predicted.iter().copied().map(Some).collect();
    let confusion = Confusion::of(labels, truth, &found)?;
    Ok(Joint {
        accuracy: confusion.accuracy(),
        balanced_accuracy: confusion.balanced_accuracy(),
        macro_f1: confusion.macro_f1(),
        predicted,
    })
}

fn softmax(scores: &[f64]) -> Vec<f64> {
    let greatest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let shares: Vec<f64> = scores.iter().map(|score| (score - greatest).exp()).collect();
    let total: f64 = shares.iter().sum();
    shares.into_iter().map(|share| share / total).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn evaluation(rows: &[(usize, &[f64])]) -> Evaluation {
        let predictions = rows.iter().enumerate().map(|(line, &(truth, scores))| Prediction {
            line: line as u64 + 1,
            truth,
            predicted: first_of_the_best(scores),
            scores: scores.to_vec(),
        });
        Evaluation {
            rows: rows.len(),
            loss: 0.0,
            label_tokens: rows.len(),
            accuracy: 0.0,
            balanced_accuracy: 0.0,
            macro_f1: 0.0,
            predictions: predictions.collect(),
        }
    }

    #[test]
    fn votes_count_and_ties_go_to_the_greatest_sum() {
        // Row 1: two of three vote for label 1. Row 2: three labels with a vote each, and label 2 has the greatest sum.
        let all = [
            evaluation(&[(1, &[-1.0, -2.0, -9.0]), (2, &[-1.0, -8.0, -2.0])]),
            evaluation(&[(1, &[-9.0, -1.0, -9.0]), (2, &[-8.0, -1.0, -2.0])]),
            evaluation(&[(1, &[-9.0, -1.0, -9.0]), (2, &[-8.0, -8.0, -0.5])]),
        ];
        let found = ensemble(3, &all).unwrap();
        assert_eq!((found.majority_vote.predicted, found.majority_vote.accuracy), (vec![1, 2], 1.0));
        // Of equals the first.
        let equal = ensemble(2, &[evaluation(&[(0, &[-1.0, -1.0])])]).unwrap();
        assert_eq!(equal.majority_vote.predicted, [0]);
    }

    #[test]
    fn a_prompt_that_is_sure_outweighs_two_that_are_not() {
        let unsure = evaluation(&[(1, &[-0.6, -0.8])]);
        let all = [unsure.clone(), unsure, evaluation(&[(1, &[-9.0, -0.1])])];
        let found = ensemble(2, &all).unwrap();
        assert_eq!((found.majority_vote.predicted, found.majority_vote.accuracy), (vec![0], 0.0));
        assert_eq!((found.mean_probability.predicted, found.mean_probability.accuracy), (vec![1], 1.0));
    }

    #[test]
    fn evaluations_of_other_rows_or_labels_are_refused() {
        let one = evaluation(&[(0, &[0.0, -1.0])]);
        assert!(ensemble(2, &[]).is_err());
        assert!(ensemble(2, &[one.clone(), evaluation(&[(1, &[0.0, -1.0])])]).is_err());
        assert!(ensemble(3, &[one]).is_err());
    }
}
