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
const SMALL: usize = 1 << 21;

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
    let wide = std::arch::is_x86_feature_detected!("avx2");
    for from in (0..k).step_by(DEPTH) {
        let depth = from..k.min(from + DEPTH);
        for (b, c) in b.chunks_exact(k * TILE_COLS).zip(c.chunks_mut(m * TILE_COLS)) {
            let b = &b[depth.start * TILE_COLS..depth.end * TILE_COLS];
            for (panel, a) in a.chunks_exact(k * TILE_ROWS).enumerate() {
                let a = &a[depth.start * TILE_ROWS..depth.end * TILE_ROWS];
                #[cfg(target_arch = "x86_64")]
                // SAFETY: the processor has AVX2.
                let sums = if wide { unsafe { tile_avx2(a, b) } } else { tile(a, b) };
                #[cfg(not(target_arch = "x86_64"))]
                let sums = tile(a, b);
                for (column, sums) in c.chunks_mut(m).zip(&sums) {
                    for (c, sum) in column[panel * TILE_ROWS..].iter_mut().zip(sums) {
                        *c += sum;
                    }
                }
            }
        }
    }
}

/// Columns of `TILE_ROWS` elements.
type Tile = [[f32; TILE_ROWS]; TILE_COLS];

/// The product of two panels.
fn tile(a: &[f32], b: &[f32]) -> Tile {
    let mut sums = Tile::default();
    for (a, b) in a.as_chunks::<TILE_ROWS>().0.iter().zip(b.as_chunks::<TILE_COLS>().0) {
        for (sums, b) in sums.iter_mut().zip(b) {
            for (sum, a) in sums.iter_mut().zip(a) {
                *sum += a * b;
            }
        }
    }
    sums
}

/// The same in vectors of 8, which the compiler does not find. Multiplication and addition stay apart, so the bits are
/// the same.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn tile_avx2(a: &[f32], b: &[f32]) -> Tile {
    use std::arch::x86_64::{
        _mm256_add_ps, _mm256_loadu_ps, _mm256_mul_ps, _mm256_set1_ps, _mm256_setzero_ps, _mm256_storeu_ps,
    };
    let mut sums = [[_mm256_setzero_ps(); 2]; TILE_COLS];
    for (a, b) in a.as_chunks::<TILE_ROWS>().0.iter().zip(b.as_chunks::<TILE_COLS>().0) {
        // SAFETY: `a` has two vectors of 8.
        let (low, high) = unsafe { (_mm256_loadu_ps(a.as_ptr()), _mm256_loadu_ps(a[8..].as_ptr())) };
        for (sums, b) in sums.iter_mut().zip(b) {
            let b = _mm256_set1_ps(*b);
            *sums = [_mm256_add_ps(sums[0], _mm256_mul_ps(low, b)), _mm256_add_ps(sums[1], _mm256_mul_ps(high, b))];
        }
    }
    let mut tile = Tile::default();
    for (column, sums) in tile.iter_mut().zip(sums) {
        // SAFETY: a column has two vectors of 8.
        unsafe {
            _mm256_storeu_ps(column.as_mut_ptr(), sums[0]);
            _mm256_storeu_ps(column[8..].as_mut_ptr(), sums[1]);
        }
    }
    tile
}
