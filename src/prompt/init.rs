//! The first prompt: where training starts (Lester et al. 2021, §3.2; PEFT's `prompt_tuning_init`).

use super::file::PromptFile;
use crate::error::{Error, Place, Result};
use crate::models::Model;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

/// Where the rows of a new prompt come from.
#[derive(Debug, Clone, Copy)]
pub enum Init<'a> {
    /// Embeddings of tokens drawn from the first `top_k` of the vocabulary: the frequent ones, by the order of most
    /// tokenizers. Without repetition as long as there are enough; special tokens are left out.
    SampleVocab {
        /// How many of the first tokens to draw from.
        top_k: usize,
    },
    /// The embeddings of a text's tokens, repeated or cut to length.
    Text(&'a str),
    /// A row per label, the mean of its tokens' embeddings; the other rows as `SampleVocab`.
    ClassLabels {
        /// Token ids of each label.
        labels: &'a [Vec<u32>],
        /// For the other rows.
        top_k: usize,
    },
    /// Uniform numbers from `-range` to `range`.
    Uniform {
        /// The bound.
        range: f64,
    },
    /// Normal numbers of deviation 1: PEFT's `RANDOM`, far above the scale of embeddings.
    Random,
    /// The rows of an existing prompt.
    File(&'a PromptFile),
}

/// The values `[rows, d]`, row after row, of a new prompt for `model`. The same seed gives the same values.
///
/// # Errors
/// [`Error::Config`] if there are more labels than rows or nothing to draw from; [`Error::Input`] for a text without
/// tokens, a model without tokenizer where one is needed, or an existing prompt of another shape.
pub fn initial_prompt(model: &Model, rows: usize, init: Init<'_>, seed: u64) -> Result<Vec<f64>> {
    let width = model.config().hidden_size;
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    match init {
        Init::SampleVocab { top_k } => sampled(model, rows, top_k, &mut random),
        Init::Text(text) => {
            let ids = model.require_tokenizer()?.encode(text)?;
            if ids.is_empty() {
                let place = Place::item("prompt_tuning_init_text");
                return Err(Error::input(place, "a text of at least one token", format!("{text:?}")));
            }
            let repeated = ids.iter().cycle().take(rows).map(|&id| model.embedding_row(id));
            Ok(repeated.collect::<Result<Vec<_>>>()?.concat())
        }
        Init::ClassLabels { labels, top_k } => {
            if labels.len() > rows {
                let expected = format!("at least {}, a row per label", labels.len());
                return Err(Error::config(Place::item("num_virtual_tokens"), expected, rows.to_string()));
            }
            let mut values = Vec::with_capacity(rows * width);
            for ids in labels {
                values.extend(mean_embedding(model, ids)?);
            }
            values.extend(sampled(model, rows - labels.len(), top_k, &mut random)?);
            Ok(values)
        }
        Init::Uniform { range } => Ok((0..rows * width).map(|_| (2.0 * uniform(&mut random) - 1.0) * range).collect()),
        Init::Random => Ok((0..rows * width).map(|_| normal(&mut random)).collect()),
        Init::File(prompt) => {
            prompt.expect_width(width, model.name())?;
            if prompt.rows != rows {
                let place = Place::item("num_virtual_tokens");
                return Err(Error::input(place, format!("{}, as in prompt_init_file", prompt.rows), rows.to_string()));
            }
            Ok(prompt.values.to_vec())
        }
    }
}

fn sampled(model: &Model, rows: usize, top_k: usize, random: &mut ChaCha8Rng) -> Result<Vec<f64>> {
    let last = top_k.min(model.config().vocab_size) as u32;
    let is_ordinary = |id: &u32| !model.tokenizer().is_some_and(|tokenizer| tokenizer.is_special(*id));
    let pool: Vec<u32> = (0..last).filter(is_ordinary).collect();
    if pool.is_empty() {
        return Err(Error::config(Place::item("init_top_k"), "enough for one ordinary token", top_k.to_string()));
    }
    let mut values = Vec::new();
    let mut left = Vec::new();
    for _ in 0..rows {
        if left.is_empty() {
            left.clone_from(&pool);
        }
        let id = left.swap_remove(below(left.len(), random));
        values.extend(model.embedding_row(id)?);
    }
    Ok(values)
}

fn mean_embedding(model: &Model, ids: &[u32]) -> Result<Vec<f64>> {
    let mut mean = vec![0.0; model.config().hidden_size];
    for &id in ids {
        for (mean, x) in mean.iter_mut().zip(model.embedding_row(id)?) {
            *mean += x / ids.len() as f64;
        }
    }
    Ok(mean)
}

/// A whole number below `limit`, evenly (the excess of 2⁶⁴ over a multiple of `limit` is too small to matter).
fn below(limit: usize, random: &mut ChaCha8Rng) -> usize {
    (random.next_u64() % limit as u64) as usize
}

/// A number in [0, 1) of 53 bits.
fn uniform(random: &mut ChaCha8Rng) -> f64 {
    (random.next_u64() >> 11) as f64 / (1u64 << 53) as f64
}

/// A normal number, by Box and Muller's transform.
fn normal(random: &mut ChaCha8Rng) -> f64 {
    let (radius, angle) = (1.0 - uniform(random), uniform(random));
    (-2.0 * radius.ln()).sqrt() * (2.0 * std::f64::consts::PI * angle).cos()
}
