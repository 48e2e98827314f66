//! The product itself: C = A B in f32, with A and B packed so that the inner loop reads both in order.
//!
//! Each element is a sum over k in one order, whatever the number of threads and the instruction set.

use std::num::NonZero;

/// Rows and columns of the tile that stays in registers.
pub(crate) const TILE_ROWS: usize = 16;
pub(crate) const TILE_COLS: usize = 4;
/// Steps of k between which a tile is written back, so that its panels stay in cache.
const DEPTH: usize = 256;
/// Multiplications under which one thread is quicker.
const SMALL: usize = 1 << 18;

/// Packs `lines` rows of A (or columns of B) of `depth` elements: in panels of `width` lines, element by element, filled
/// up with zeros.
pub(crate) fn pack(lines: usize, depth: usize, width: usize, element: impl Fn(usize, usize) -> f32) -> Vec<f32> {
    let mut packed = vec![0.0; lines.next_multiple_of(width) * depth];
    for (panel, packed) in packed.chunks_exact_mut(width * depth).enumerate() {
        let first = panel * width;
        for line in first..lines.min(first + width) {
            for step in 0..depth {
                packed[step * width + line - first] = element(line, step);
            }
        }
    }
    packed
}

/// The product of packed matrices, in columns of `m` elements.
pub(crate) fn product(m: usize, n: usize, k: usize, a: &[f32], b: &[f32]) -> Vec<f32> {
    let mut c = vec![0.0; m * n];
    let threads = if m * n * k < SMALL { 1 } else { std::thread::available_parallelism().map_or(1, NonZero::get) };
    let cols = n.div_ceil(threads).next_multiple_of(TILE_COLS);
    if cols >= n {
        columns(m, k, a, b, &mut c);
        return c;
    }
    std::thread::scope(|scope| {
        for (c, b) in c.chunks_mut(m * cols).zip(b.chunks(k * cols)) {
            scope.spawn(move || columns(m, k, a, b, c));
        }
    });
    c
}

/// Some columns of the product.
fn columns(m: usize, k: usize, a: &[f32], b: &[f32], c: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has AVX2.
        return unsafe { columns_avx2(m, k, a, b, c) };
    }
    columns_generic(m, k, a, b, c);
}

/// The same code with wider vectors: multiplication and addition stay apart, so the bits are the same.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn columns_avx2(m: usize, k: usize, a: &[f32], b: &[f32], c: &mut [f32]) {
    columns_generic(m, k, a, b, c);
}

#[inline(always)]
fn columns_generic(m: usize, k: usize, a: &[f32], b: &[f32], c: &mut [f32]) {
    for from in (0..k).step_by(DEPTH) {
        let depth = from..k.min(from + DEPTH);
        for (b, c) in b.chunks_exact(k * TILE_COLS).zip(c.chunks_mut(m * TILE_COLS)) {
            let b = &b[depth.start * TILE_COLS..depth.end * TILE_COLS];
            for (panel, a) in a.chunks_exact(k * TILE_ROWS).enumerate() {
                let a = &a[depth.start * TILE_ROWS..depth.end * TILE_ROWS];
                tile(a, b, m, panel * TILE_ROWS, c);
            }
        }
    }
}

/// Adds the product of two panels to the tile of `c` that starts at `row`.
#[inline(always)]
fn tile(a: &[f32], b: &[f32], m: usize, row: usize, c: &mut [f32]) {
    let mut sums = [[0.0f32; TILE_ROWS]; TILE_COLS];
    for (a, b) in a.chunks_exact(TILE_ROWS).zip(b.chunks_exact(TILE_COLS)) {
        for (sums, b) in sums.iter_mut().zip(b) {
            for (sum, a) in sums.iter_mut().zip(a) {
                *sum += a * b;
            }
        }
    }
    for (column, sums) in c.chunks_mut(m).zip(&sums) {
        for (c, sum) in column[row..].iter_mut().zip(sums) {
            *c += sum;
        }
    }
}
