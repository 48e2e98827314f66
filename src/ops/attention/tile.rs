//! One tile of attention: some query rows of one segment, and the query heads that share one key head. The heads are
//! stacked, so that a tile is a matrix of `rows · group` queries whatever the grouping.

use super::Heads;
use crate::device::{Device, Kind};
use crate::dtype::Element;
use crate::layout::{Segment, Segments};
use crate::ops::gemm::view;
use crate::tensor::Tensor;
use faer::MatRef;
use std::ops::Range;

/// Queries in a tile, over all its heads, at most.
const TILE_QUERIES: usize = 192;

/// Query rows per tile.
pub(super) fn tile_rows(heads: Heads) -> usize {
    (TILE_QUERIES / (heads.queries / heads.keys)).max(8)
}

/// The queries of a tile.
pub(super) struct Tile<'a> {
    pub(super) heads: Heads,
    pub(super) key_head: usize,
    /// Rows of the query tensor.
    pub(super) rows: Range<usize>,
    /// Own keys seen by each of `rows`.
    pub(super) visible: &'a [usize],
}

/// A run of key rows that a tile scores against.
pub(super) struct Span {
    pub(super) keys: Range<usize>,
    /// The span is the segment's own, of which a query sees only the first `visible`.
    pub(super) is_own: bool,
}

impl<'a> Tile<'a> {
    pub(super) fn new(heads: Heads, key_head: usize, rows: Range<usize>, segments: &'a Segments) -> Self {
        let visible = &segments.visible()[rows.clone()];
        Self { heads, key_head, rows, visible }
    }

    pub(super) fn group(&self) -> usize {
        self.heads.queries / self.heads.keys
    }

    /// The number of stacked queries.
    pub(super) fn queries(&self) -> usize {
        self.rows.len() * self.group()
    }

    /// The spans that queries of the tile see, the own one cut to what any of them sees.
    pub(super) fn spans(&self, segment: &Segment) -> Vec<Span> {
        let mut spans: Vec<Span> =
            segment.context.iter().map(|keys| Span { keys: keys.clone(), is_own: false }).collect();
        let seen = self.visible.iter().copied().max().unwrap_or(0);
        if seen > 0 {
            spans.push(Span { keys: segment.own.start..segment.own.start + seen, is_own: true });
        }
        spans
    }

    /// Stacks this tile's heads of `source` `[queries, heads · dim]`, times `factor`, into `out` `[group · rows, dim]`.
    pub(super) fn gather<E: Element>(&self, source: &[E], factor: E, out: &mut [E]) {
        let dim = self.heads.dim;
        for (head, row, out) in self.stacked(out, dim) {
            let from = (row * self.heads.queries + head) * dim;
            for (out, &x) in out.iter_mut().zip(&source[from..from + dim]) {
                *out = x * factor;
            }
        }
    }

    /// Takes this tile's numbers out of `source` `[queries, heads]`.
    pub(super) fn gather_scalars<E: Element>(&self, source: &[E], out: &mut [E]) {
        for (head, row, out) in self.stacked(out, 1) {
            out[0] = source[row * self.heads.queries + head];
        }
    }

    /// Writes stacked rows back to `target`, whose first row is the tile's first, each `heads · width` long.
    pub(super) fn scatter<E: Element>(&self, stacked: &[E], width: usize, target: &mut [E]) {
        let rows = self.rows.len();
        for (position, from) in stacked.chunks_exact(width).take(self.queries()).enumerate() {
            let (head, row) = (self.key_head * self.group() + position / rows, position % rows);
            let to = (row * self.heads.queries + head) * width;
            // Rows past the end of the target carry no gradient.
            if let Some(target) = target.get_mut(to..to + width) {
                target.copy_from_slice(from);
            }
        }
    }

    /// Query head, query row and place of each stacked row.
    fn stacked<'b, E>(&self, out: &'b mut [E], width: usize) -> impl Iterator<Item = (usize, usize, &'b mut [E])> {
        let (rows, first_row, first_head) = (self.rows.len(), self.rows.start, self.key_head * self.group());
        out.chunks_exact_mut(width)
            .take(self.queries())
            .enumerate()
            .map(move |(position, out)| (first_head + position / rows, first_row + position % rows, out))
    }

    /// Query head and query row of stacked query `position`.
    pub(super) fn place(&self, position: usize) -> (usize, usize) {
        let rows = self.rows.len();
        (self.key_head * self.group() + position / rows, self.rows.start + position % rows)
    }

    /// How many keys of a span stacked query `position` sees.
    pub(super) fn seen(&self, span: &Span, position: usize) -> usize {
        if span.is_own { self.visible[position % self.rows.len()].min(span.keys.len()) } else { span.keys.len() }
    }

    /// The tile's key head in rows `keys` of `[_, heads.keys · dim]`.
    pub(super) fn key_view<'b, E: Element>(&self, source: &'b [E], keys: &Range<usize>) -> MatRef<'b, E> {
        let (stride, dim) = (self.heads.keys * self.heads.dim, self.heads.dim);
        let rows = &source[keys.start * stride..keys.end * stride];
        view(rows, keys.len(), stride).submatrix(0, self.key_head * dim, keys.len(), dim)
    }
}

/// Scratch of a task, from the device's pool.
pub(super) struct Scratch<'a>(pub(super) &'a Device);

impl Scratch<'_> {
    pub(super) fn matrix<E: Element>(&self, rows: usize, cols: usize) -> Tensor {
        Tensor::scratch(self.0, rows, cols, E::DTYPE, Kind::Workspace)
    }
}
