//! Looking at prompts: which tokens their rows are nearest to (Lester et al. 2021, §7).

use crate::error::{Error, Place, Result};
use crate::models::Model;
use rayon::prelude::*;

/// A token near a prompt row.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Neighbour {
    /// The token.
    pub id: u32,
    /// Its text, if the model has a tokenizer.
    pub token: Option<String>,
    /// Whether it is a special token.
    pub is_special: bool,
    /// Whether the tokenizer has no token of this id: a padding row of the embedding. False without a tokenizer.
    pub is_unused: bool,
    /// The cosine distance, `1 − cos`, from 0 to 2.
    pub distance: f64,
}

/// What a row of a prompt is near to.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct RowNeighbours {
    /// The row's norm.
    pub norm: f64,
    /// The nearest tokens, nearest first; of equals the lower id.
    pub nearest: Vec<Neighbour>,
}

/// The `top` tokens nearest to each row of `values` `[rows, d]` by cosine distance to their embeddings, and the mean norm of
/// the vocabulary's embeddings. The vocabulary is walked row by row, never held.
///
/// # Errors
/// [`Error::Input`] if the values are not rows of the model's width.
pub fn neighbours(model: &Model, values: &[f64], top: usize) -> Result<(Vec<RowNeighbours>, f64)> {
    const CHUNK: u32 = 1024;
    let width = model.config().hidden_size;
    if !values.len().is_multiple_of(width) {
        let expected = format!("rows of width {width}");
        return Err(Error::input(Place::item("prompt"), expected, format!("{} values", values.len())));
    }
    let rows: Vec<&[f64]> = values.chunks_exact(width).collect();
    let norm = |row: &[f64]| row.iter().map(|x| x * x).sum::<f64>().sqrt();
    let norms: Vec<f64> = rows.iter().map(|row| norm(row)).collect();
    let vocabulary = model.config().vocab_size as u32;
    let starts: Vec<u32> = (0..vocabulary).step_by(CHUNK as usize).collect();
    let parts = starts
        .par_iter()
        .map(|&start| {
            let mut best = vec![Vec::new(); rows.len()];
            let mut total = 0.0;
            for id in start..(start + CHUNK).min(vocabulary) {
                let embedding = model.embedding_row(id)?;
                let length = norm(&embedding);
                total += length;
                for ((best, row), row_norm) in best.iter_mut().zip(&rows).zip(&norms) {
                    let dot: f64 = row.iter().zip(&embedding).map(|(a, b)| a * b).sum();
                    let product = length * row_norm;
                    best.push((if product > 0.0 { 1.0 - dot / product } else { 1.0 }, id));
                }
            }
            best.iter_mut().for_each(|best| keep_nearest(best, top));
            Ok((best, total))
        })
        .collect::<Result<Vec<_>>>()?;
    let mut nearest: Vec<Vec<(f64, u32)>> = vec![Vec::new(); rows.len()];
    let mut total = 0.0;
    for (best, part) in parts {
        total += part;
        nearest.iter_mut().zip(best).for_each(|(all, part)| all.extend(part));
    }
    let tokenizer = model.tokenizer();
    let described = nearest.into_iter().zip(norms).map(|(mut all, norm)| {
        keep_nearest(&mut all, top);
        let nearest = all.into_iter().map(|(distance, id)| Neighbour {
            id,
            token: tokenizer.and_then(|tokenizer| tokenizer.decode(&[id], false).ok()),
            is_special: tokenizer.is_some_and(|tokenizer| tokenizer.is_special(id)),
            is_unused: tokenizer.is_some_and(|tokenizer| tokenizer.token(id).is_none()),
            distance,
        });
        RowNeighbours { norm, nearest: nearest.collect() }
    });
    Ok((described.collect(), total / f64::from(vocabulary.max(1))))
}

fn keep_nearest(best: &mut Vec<(f64, u32)>, top: usize) {
    best.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    best.truncate(top);
}
