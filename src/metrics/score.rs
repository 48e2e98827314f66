//! Scores of an evaluation, by scikit-learn's definitions.

use crate::error::{Error, Result};

/// How often each class was predicted for each true class.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Confusion {
    classes: usize,
    /// `[classes, classes]`, row = truth, column = prediction.
    counts: Vec<u64>,
    /// Per true class, the predictions that are no class at all.
    none: Vec<u64>,
}

impl Confusion {
    /// An empty table of `classes` classes.
    pub fn new(classes: usize) -> Self {
        Self { classes, counts: vec![0; classes * classes], none: vec![0; classes] }
    }

    /// The table of `truth` and `predicted`, which are class numbers; `None` is a prediction that is no class, such as
    /// a generated text that matches no label.
    ///
    /// # Errors
    /// `Op` where the lengths differ or a class number is `classes` or above.
    pub fn of(classes: usize, truth: &[usize], predicted: &[Option<usize>]) -> Result<Self> {
        if truth.len() != predicted.len() {
            let got = format!("{} of {} truths", predicted.len(), truth.len());
            return Err(Error::op("Confusion::of", "a prediction for each truth", got));
        }
        let mut table = Self::new(classes);
        for (&truth, &predicted) in truth.iter().zip(predicted) {
            table.add(truth, predicted)?;
        }
        Ok(table)
    }

    /// Counts one example.
    ///
    /// # Errors
    /// `Op` where a class number is out of range.
    pub fn add(&mut self, truth: usize, predicted: Option<usize>) -> Result<()> {
        let highest = predicted.map_or(truth, |p| p.max(truth));
        if highest >= self.classes {
            return Err(Error::op("Confusion::add", format!("classes below {}", self.classes), highest.to_string()));
        }
        match predicted {
            Some(predicted) => self.counts[truth * self.classes + predicted] += 1,
            None => self.none[truth] += 1,
        }
        Ok(())
    }

    /// How often `predicted` was said of examples of class `truth`; 0 for classes that do not exist.
    pub fn count(&self, truth: usize, predicted: usize) -> u64 {
        if truth.max(predicted) < self.classes { self.counts[truth * self.classes + predicted] } else { 0 }
    }

    /// How many examples of class `truth` got a prediction that is no class.
    pub fn unmatched(&self, truth: usize) -> u64 {
        self.none.get(truth).copied().unwrap_or(0)
    }

    /// The number of examples.
    pub fn total(&self) -> u64 {
        self.counts.iter().chain(&self.none).sum()
    }

    /// The share of examples that were predicted right; NaN where there are none.
    pub fn accuracy(&self) -> f64 {
        let right: u64 = (0..self.classes).map(|c| self.count(c, c)).sum();
        right as f64 / self.total() as f64
    }

    /// The mean recall of the classes that some example truly has; NaN where there are no examples.
    pub fn balanced_accuracy(&self) -> f64 {
        mean((0..self.classes).filter(|&c| self.truths(c) > 0).map(|c| self.count(c, c) as f64 / self.truths(c) as f64))
    }

    /// The mean F1, `2·tp / (2·tp + fp + fn)`, of the classes that occur among truths or predictions; a class that
    /// occurs and is never right has 0. NaN where there are no examples.
    ///
    /// Predictions that are no class count against the true class, and make no class of their own: scikit-learn's
    /// `f1_score(labels=…, average="macro")` with the labels that occur.
    pub fn macro_f1(&self) -> f64 {
        mean((0..self.classes).filter_map(|c| {
            let occurrences = self.truths(c) + self.predictions(c);
            (occurrences > 0).then(|| 2.0 * self.count(c, c) as f64 / occurrences as f64)
        }))
    }

    fn truths(&self, class: usize) -> u64 {
        (0..self.classes).map(|p| self.count(class, p)).sum::<u64>() + self.none[class]
    }

    fn predictions(&self, class: usize) -> u64 {
        (0..self.classes).map(|t| self.count(t, class)).sum()
    }
}

/// What is made alike before two answers are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Normalise {
    /// White space at both ends is removed.
    #[default]
    Trim,
    /// As SQuAD's evaluation: lower case, without ASCII punctuation, without the words a, an and the, white space
    /// collapsed.
    Squad,
}

/// Whether `predicted` equals one of the right answers.
pub fn exact_match(predicted: &str, truths: &[&str], normalise: Normalise) -> bool {
    match normalise {
        Normalise::Trim => truths.iter().any(|truth| truth.trim() == predicted.trim()),
        Normalise::Squad => {
            let predicted = squad(predicted);
            truths.iter().any(|truth| squad(truth) == predicted)
        }
    }
}

/// The share of `(predicted, truth)` pairs that match; NaN where there are none.
pub fn exact_match_rate<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a str)>, normalise: Normalise) -> f64 {
    mean(pairs.into_iter().map(|(predicted, truth)| f64::from(exact_match(predicted, &[truth], normalise))))
}

fn squad(text: &str) -> String {
    let plain: String = text.to_lowercase().chars().filter(|c| !c.is_ascii_punctuation()).collect();
    // Articles go wherever they stand between characters of other words, a dash of another alphabet included.
    let mut out = String::new();
    let mut rest = plain.as_str();
    while let Some(first) = rest.chars().next() {
        let end = rest.find(|c: char| c.is_alphanumeric() != first.is_alphanumeric()).unwrap_or(rest.len());
        let (run, after) = rest.split_at(end);
        out.push_str(if matches!(run, "a" | "an" | "the") { " " } else { run });
        rest = after;
    }
    out.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let (sum, count) = values.fold((0.0, 0u64), |(sum, count), v| (sum + v, count + 1));
    sum / count as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(got: f64, want: f64) {
        assert!((got - want).abs() < 1e-12, "{got} {want}");
    }

    fn table(classes: usize, truth: &[usize], predicted: &[usize]) -> Confusion {
        let predicted: Vec<_> = predicted.iter().map(|&p| Some(p)).collect();
        Confusion::of(classes, truth, &predicted).unwrap()
    }

    #[test]
    fn scores_by_hand() {
        // Recalls 2/3, 1/1, 0/2.
        let t = table(3, &[0, 0, 0, 1, 2, 2], &[0, 0, 2, 1, 1, 0]);
        close(t.accuracy(), 0.5);
        close(t.balanced_accuracy(), (2.0 / 3.0 + 1.0) / 3.0);
        // Class 0: tp 2, fp 1, fn 1; class 1: tp 1, fp 1, fn 0; class 2: tp 0, fp 1, fn 2.
        close(t.macro_f1(), (4.0 / 6.0 + 2.0 / 3.0 + 0.0) / 3.0);
        assert_eq!((t.count(2, 1), t.count(0, 2), t.count(9, 9), t.total()), (1, 1, 0, 6));
    }

    #[test]
    fn classes_never_predicted_or_never_true_are_treated_as_scikit_learn_does() {
        // Class 1 is never predicted: recall and F1 0, both counted.
        let t = table(2, &[0, 0, 1], &[0, 0, 0]);
        close(t.balanced_accuracy(), 0.5);
        close(t.macro_f1(), (4.0 / 5.0 + 0.0) / 2.0);
        // Class 1 is predicted and never true: no recall, but an F1 of 0. Class 2 does not occur: not counted.
        let t = table(3, &[0, 0], &[0, 1]);
        close(t.balanced_accuracy(), 0.5);
        close(t.macro_f1(), (2.0 / 3.0 + 0.0) / 2.0);
    }

    #[test]
    fn a_prediction_that_is_no_class_is_wrong_and_no_class() {
        let t = Confusion::of(2, &[0, 0, 1], &[Some(0), None, Some(1)]).unwrap();
        close(t.accuracy(), 2.0 / 3.0);
        close(t.balanced_accuracy(), 0.75);
        close(t.macro_f1(), (2.0 / 3.0 + 1.0) / 2.0);
        assert_eq!((t.unmatched(0), t.unmatched(7)), (1, 0));
    }

    #[test]
    fn nothing_scores_nothing_and_nonsense_is_refused() {
        let t = Confusion::new(2);
        assert!(t.accuracy().is_nan() && t.balanced_accuracy().is_nan() && t.macro_f1().is_nan());
        assert_eq!(Confusion::of(2, &[0], &[]).unwrap_err().exit_code(), 1);
        assert_eq!(Confusion::of(2, &[2], &[Some(0)]).unwrap_err().exit_code(), 1);
        assert_eq!(Confusion::of(2, &[0], &[Some(2)]).unwrap_err().exit_code(), 1);
    }

    #[test]
    fn exact_match_trims_or_normalises() {
        assert!(exact_match(" Paris\n", &["Rome", "Paris"], Normalise::Trim));
        assert!(!exact_match("paris", &["Paris"], Normalise::Trim));
        assert!(exact_match("The  Eiffel-Tower!", &["eiffeltower"], Normalise::Squad));
        assert!(exact_match("a cat and an owl", &["cat and owl"], Normalise::Squad));
        assert!(exact_match("x\u{2013}a\u{2013}y", &["x\u{2013} \u{2013}y"], Normalise::Squad));
        assert!(!exact_match("theatre", &["atre"], Normalise::Squad));
        close(exact_match_rate([("a", "a "), ("b", "c")], Normalise::Trim), 0.5);
        assert!(exact_match_rate([], Normalise::Trim).is_nan());
    }
}
