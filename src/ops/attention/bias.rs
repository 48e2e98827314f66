//! What is added to scores by the distance between query and key (Raffel et al. 2020 §2.1), and its gradient on the CPU.

use super::tile::Tile;
use crate::dtype::{DType, Element};
use crate::error::{Error, Result};
use crate::indices::Indices;
use crate::layout::Segments;
use crate::ops::simd::add_assign;
use crate::ops::wide::widened;
use crate::tape::Var;
use std::ops::Range;

/// An additive bias by relative position: the score of query `i` and key `j` in head `h` gets
/// `table[h, clamp(key_positions[j] − query_positions[i] + offset, 0, distances − 1)]`.
#[derive(Debug, Clone)]
pub struct PositionBias {
    /// `[query heads, distances]`, of the accumulator's type.
    pub table: Var,
    /// The position of each query row.
    pub query_positions: Indices,
    /// The position of each key row.
    pub key_positions: Indices,
    /// The column of distance 0.
    pub offset: usize,
}

impl PositionBias {
    pub(super) fn check(&self, heads: usize, dtype: DType, segments: &Segments) -> Result<()> {
        let table = self.table.tensor();
        if table.rows() != heads || table.cols() == 0 || table.dtype() != dtype.accumulator() {
            let expected = format!("a bias table of {heads} rows in {}", dtype.accumulator());
            return Err(Error::op("attention", expected, table.describe()));
        }
        let positions = (self.query_positions.len(), self.key_positions.len());
        if positions != (segments.query_rows(), segments.key_rows()) {
            let expected = format!("{} and {} positions", segments.query_rows(), segments.key_rows());
            return Err(Error::op("attention", expected, format!("{} and {}", positions.0, positions.1)));
        }
        Ok(())
    }

    pub(super) fn widened(&self) -> Self {
        Self { table: Var::constant(widened(self.table.tensor())), ..self.clone() }
    }
}

/// A [`PositionBias`] as the CPU's loops read it.
pub(super) struct Bias<'a, E> {
    table: &'a [E],
    distances: usize,
    query_positions: &'a [usize],
    key_positions: &'a [usize],
    offset: usize,
}

impl<'a, E: Element> Bias<'a, E> {
    pub(super) fn new(bias: &'a PositionBias) -> Self {
        Self {
            table: bias.table.tensor().as_slice(),
            distances: bias.table.tensor().cols(),
            query_positions: &bias.query_positions,
            key_positions: &bias.key_positions,
            offset: bias.offset,
        }
    }

    /// Adds to the first `keys.len()` of each `stride` scores of the tile's stacked queries.
    pub(super) fn add(&self, tile: &Tile<'_>, keys: &Range<usize>, scores: &mut [E], stride: usize) {
        let is_run = self.is_run(keys);
        let rows = scores.chunks_mut(stride).take(tile.queries());
        for (position, scores) in rows.enumerate() {
            let scores = &mut scores[..keys.len()];
            let (head, query) = tile.place(position);
            let table = &self.table[head * self.distances..][..self.distances];
            match self.run(query, keys).filter(|_| is_run) {
                Some(first) => add_assign(scores, &table[first..first + keys.len()]),
                None => scores.iter_mut().zip(keys.clone()).for_each(|(score, key)| {
                    *score += table[self.column(query, key)];
                }),
            }
        }
    }

    /// Adds the gradients of scores, `keys.len()` of each stacked query, to those of the table.
    pub(super) fn add_gradient(&self, tile: &Tile<'_>, keys: &Range<usize>, d_scores: &[E], d_table: &mut [E]) {
        let is_run = self.is_run(keys);
        for (position, d_scores) in d_scores.chunks_exact(keys.len()).take(tile.queries()).enumerate() {
            let (head, query) = tile.place(position);
            let d_table = &mut d_table[head * self.distances..][..self.distances];
            match self.run(query, keys).filter(|_| is_run) {
                Some(first) => add_assign(&mut d_table[first..first + keys.len()], d_scores),
                None => d_scores.iter().zip(keys.clone()).for_each(|(&d_score, key)| {
                    d_table[self.column(query, key)] += d_score;
                }),
            }
        }
    }

    /// Whether the keys' positions follow one another, so that their biases do too.
    fn is_run(&self, keys: &Range<usize>) -> bool {
        self.key_positions[keys.clone()].windows(2).all(|pair| pair[1] == pair[0] + 1)
    }

    /// The column of the first of a run of keys, if no column of the run has to be clamped.
    fn run(&self, query: usize, keys: &Range<usize>) -> Option<usize> {
        let first = (self.key_positions[keys.start] + self.offset).checked_sub(self.query_positions[query])?;
        (first + keys.len() <= self.distances).then_some(first)
    }

    fn column(&self, query: usize, key: usize) -> usize {
        let column = (self.key_positions[key] + self.offset).saturating_sub(self.query_positions[query]);
        column.min(self.distances - 1)
    }
}
