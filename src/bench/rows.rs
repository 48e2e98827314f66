//! The examples of the step that is timed.

use crate::data::Dataset;
use crate::error::{Error, Place, Result};
use crate::step::Batch;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

/// The most tokens of a batch: beyond this there is no machine to run it on, and what the host keeps of it is large itself.
const MOST_TOKENS: usize = 1 << 24;

/// The shortest example of uneven ones, where the longest is not shorter.
const SHORTEST: usize = 4;

/// Examples as ids: input and target.
#[derive(Debug, Clone)]
pub struct Rows(Vec<(Vec<u32>, Vec<u32>)>);

impl Rows {
    /// `examples` made-up examples of `tokens` tokens, of which the last is the label. `uneven` is the seed of their lengths,
    /// then drawn evenly from 4 to `tokens`; without it all are as long. The same sizes give the same rows.
    ///
    /// # Errors
    /// [`Error::Config`] for no examples, fewer than 2 tokens, or more tokens than any machine has memory for.
    pub fn made(vocab_size: usize, examples: usize, tokens: usize, uneven: Option<u64>) -> Result<Self> {
        if examples == 0 {
            return Err(Error::config(Place::item("examples"), "at least 1", "0"));
        }
        if tokens < 2 {
            return Err(Error::config(Place::item("tokens"), "at least 2 of an example", tokens.to_string())
                .hint("one to read and one to predict"));
        }
        if examples.saturating_mul(tokens) > MOST_TOKENS {
            let got = format!("{examples} × {tokens}");
            return Err(Error::config(Place::item("examples"), format!("at most {MOST_TOKENS} tokens in all"), got)
                .hint("take fewer or shorter examples"));
        }
        let mut lengths = uneven.map(ChaCha8Rng::seed_from_u64);
        let shortest = SHORTEST.min(tokens);
        let example = |example: usize| {
            let choices = (tokens - shortest + 1) as u64;
            let length = lengths.as_mut().map_or(tokens, |random| shortest + (random.next_u64() % choices) as usize);
            // Neighbours differ, within an example and between examples.
            let ids: Vec<u32> = (0..length).map(|at| ((example * 131 + at * 17) % vocab_size) as u32).collect();
            (ids[..length - 1].to_vec(), ids[length - 1..].to_vec())
        };
        Ok(Self((0..examples).map(example).collect()))
    }

    /// The rows of a file, in its order.
    pub fn of(dataset: &Dataset) -> Self {
        Self(dataset.examples.iter().map(|row| (row.input_ids.clone(), row.target_ids.clone())).collect())
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Tokens of the longest, label included.
    pub fn longest(&self) -> usize {
        self.0.iter().map(|(input, target)| input.len() + target.len()).max().unwrap_or(0)
    }

    /// Their rows in the stream: the last token of each is only predicted.
    pub fn stream_rows(&self) -> usize {
        self.0.iter().map(|(input, target)| input.len() + target.len().saturating_sub(1)).sum()
    }

    /// The batch of all of them.
    ///
    /// # Errors
    /// [`Error::Input`] for a row without a label.
    pub fn batch(&self) -> Result<Batch> {
        let mut batch = Batch::new();
        for (input, target) in &self.0 {
            batch.push(input, target)?;
        }
        Ok(batch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_have_the_sizes_asked_for() {
        let even = Rows::made(100, 3, 5, None).unwrap();
        let batch = even.batch().unwrap();
        assert_eq!((even.len(), even.longest(), batch.tokens(), batch.label_tokens()), (3, 5, 15, 3));
        let lengths = |seed| Rows::made(100, 200, 9, Some(seed)).unwrap().0.iter().map(|row| row.0.len() + 1).collect();
        let (one, other): (Vec<usize>, Vec<usize>) = (lengths(1), lengths(2));
        assert_eq!((one.iter().min(), one.iter().max()), (Some(&4), Some(&9)));
        assert!(one == lengths(1) && one != other);
        assert_eq!(Rows::made(100, 5, 2, Some(1)).unwrap().batch().unwrap().tokens(), 10);
        assert!(Rows::made(7, 50, 20, None).unwrap().0.iter().flat_map(|row| &row.0).all(|&id| id < 7));
    }

    #[test]
    fn sizes_that_make_no_step_are_refused() {
        for (examples, tokens) in [(0, 5), (3, 0), (3, 1), (1 << 20, 1 << 20), (usize::MAX, usize::MAX)] {
            assert_eq!(Rows::made(100, examples, tokens, None).unwrap_err().exit_code(), 3, "{examples} {tokens}");
        }
    }
}
