//! A held-out part of one file.

use super::hash::{extend, splitmix64};
use super::{Dataset, Example, Skipped};
use crate::error::Place;
use crate::{Error, Result};

impl Dataset {
    /// Parts the examples into those to train on and those held out, about `fraction` of them, and returns both in
    /// this order. The counts of long rows stay with the first part.
    ///
    /// A row's side is decided by a hash of `seed` and its ids alone: rows with the same ids are always on the same
    /// side, and rows added to the file move no other. Each part has at least one row: where the hash puts all on one
    /// side, the row nearest to the border changes sides, with its equals.
    ///
    /// # Errors
    /// [`Error::Config`] for a fraction that is not between 0 and 1, both excluded; [`Error::Input`] for a file
    /// without two different rows.
    pub fn split(self, fraction: f64, seed: u64) -> Result<(Self, Self)> {
        if !(fraction > 0.0 && fraction < 1.0) {
            return Err(Error::config(
                Place::item("eval_fraction"),
                "a number between 0 and 1, both excluded",
                fraction.to_string(),
            ));
        }
        let hashes: Vec<u64> = self.examples.iter().map(|e| content_hash(e, seed)).collect();
        let border = border(&hashes, fraction).ok_or_else(|| {
            Error::input(Place::file(&self.path), "two different rows, to hold one out", "fewer")
                .hint("add rows, or give another file as eval_file")
        })?;
        let mut train = Self { path: self.path.clone(), examples: Vec::new(), skipped: self.skipped };
        let mut held = Self { path: self.path, examples: Vec::new(), skipped: Skipped::default() };
        for (example, hash) in self.examples.into_iter().zip(hashes) {
            let side = if hash <= border { &mut held } else { &mut train };
            side.examples.push(example);
        }
        Ok((train, held))
    }
}

/// A hash of what the model sees of a row.
fn content_hash(example: &Example, seed: u64) -> u64 {
    let ids = |state, ids: &[u32]| ids.iter().fold(state, |state, &id| extend(state, u64::from(id)));
    let input = ids(splitmix64(seed), &example.input_ids);
    // The bar between the two parts is no id, so that moving an id over it gives another hash.
    ids(extend(input, u64::MAX), &example.target_ids)
}

/// The greatest hash that is held out, if there are two sides at all.
fn border(hashes: &[u64], fraction: f64) -> Option<u64> {
    let (low, high) = (*hashes.iter().min()?, *hashes.iter().max()?);
    let second_highest = hashes.iter().copied().filter(|&h| h != high).max()?;
    // A float of 53 bits times 2^64 fits: fraction < 1, and the cast saturates.
    let border = (fraction * 2f64.powi(64)) as u64;
    Some(border.clamp(low, second_highest))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example(input: &[u32], target: &[u32], line: u64) -> Example {
        Example { input_ids: input.to_vec(), target_ids: target.to_vec(), line, target_text: None }
    }

    fn dataset(examples: Vec<Example>) -> Dataset {
        Dataset { path: "d.jsonl".into(), examples, skipped: Skipped { too_long: 3, truncated: 1 } }
    }

    fn numbered(range: std::ops::Range<u32>) -> Dataset {
        dataset(range.map(|i| example(&[i], &[i % 3], u64::from(i) + 1)).collect())
    }

    fn lines(data: &Dataset) -> Vec<u64> {
        data.examples.iter().map(|e| e.line).collect()
    }

    #[test]
    fn about_the_fraction_is_held_out_in_order() {
        for fraction in [0.1, 0.5, 0.9] {
            let (train, held) = numbered(0..10_000).split(fraction, 1).unwrap();
            let got = held.examples.len() as f64 / 10_000.0;
            assert!((got - fraction).abs() < 0.015, "{fraction}: {got}");
            assert_eq!(train.examples.len() + held.examples.len(), 10_000);
            assert!(lines(&train).is_sorted() && lines(&held).is_sorted());
            assert_eq!(train.skipped, Skipped { too_long: 3, truncated: 1 });
            assert_eq!(held.skipped, Skipped::default());
        }
    }

    #[test]
    fn the_seed_and_nothing_else_chooses() {
        let held = |seed| lines(&numbered(0..500).split(0.2, seed).unwrap().1);
        assert_eq!(held(1), held(1));
        assert_ne!(held(1), held(2));
        // Pinned: a change here moves rows of old runs over the border.
        assert_eq!(lines(&numbered(0..20).split(0.3, 0).unwrap().1), PINNED);
    }
    const PINNED: &[u64] = &[1, 3, 4, 5, 8, 9, 10, 16, 18, 20];

    #[test]
    fn rows_that_are_added_move_no_other() {
        let few = numbered(0..300).split(0.2, 5).unwrap().1;
        let many = numbered(0..900).split(0.2, 5).unwrap().1;
        assert_eq!(lines(&few), lines(&many).into_iter().filter(|&l| l <= 300).collect::<Vec<_>>());
    }

    #[test]
    fn equal_rows_are_on_one_side() {
        let rows = (0..3000u32).map(|i| example(&[i % 100, 1], &[i % 2], u64::from(i))).collect();
        let (train, held) = dataset(rows).split(0.4, 9).unwrap();
        assert!(!train.examples.is_empty() && !held.examples.is_empty());
        for h in &held.examples {
            assert!(!train.examples.iter().any(|t| t.input_ids == h.input_ids && t.target_ids == h.target_ids));
        }
    }

    #[test]
    fn no_side_is_empty() {
        for fraction in [1e-12, 0.01, 0.99, 1.0 - 1e-12] {
            for n in 2..6 {
                let (train, held) = numbered(0..n).split(fraction, 3).unwrap();
                assert!(!train.examples.is_empty() && !held.examples.is_empty(), "{fraction} {n}");
            }
        }
        let same = || vec![example(&[1], &[2], 1), example(&[1], &[2], 2)];
        assert_eq!(dataset(same()).split(0.5, 0).unwrap_err().exit_code(), 4);
    }

    #[test]
    fn the_bar_between_input_and_target_counts() {
        assert_ne!(content_hash(&example(&[1, 2], &[3], 1), 0), content_hash(&example(&[1], &[2, 3], 1), 0));
        assert_eq!(content_hash(&example(&[1], &[2], 1), 0), content_hash(&example(&[1], &[2], 9), 0));
    }

    #[test]
    fn fractions_that_part_nothing_are_refused() {
        for fraction in [0.0, 1.0, -0.1, 1.5, f64::NAN, f64::INFINITY] {
            let error = numbered(0..5).split(fraction, 0).unwrap_err();
            assert_eq!(error.exit_code(), 3, "{fraction}");
            assert!(error.to_string().contains("eval_fraction"), "{error}");
        }
    }
}
