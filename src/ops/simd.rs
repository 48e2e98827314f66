//! Loops for the processor at hand: element-wise work compiled once for the baseline and once for each wider
//! instruction set, chosen when the program runs.
//!
//! Plain loops inside [`vectorised`] become vector code; sums that need a fixed order keep [`LANES`] running totals.

use crate::dtype::Element;
use rayon::prelude::*;

/// Running totals of a reduction, added up in one fixed order whatever the processor.
const LANES: usize = 16;

/// Runs `work` compiled for the widest vectors of this processor. `work` must be inlined to profit: a closure of loops.
#[inline(always)]
pub(crate) fn vectorised<R>(work: impl FnOnce() -> R) -> R {
    pulp::Arch::new().dispatch(work)
}

/// `Σ xᵢ yᵢ`.
#[inline(always)]
pub(crate) fn dot<E: Element>(x: &[E], y: &[E]) -> E {
    let mut totals = [E::ZERO; LANES];
    let (xs, ys) = (x.chunks_exact(LANES), y.chunks_exact(LANES));
    let tail = dot_tail(xs.remainder(), ys.remainder());
    for (x, y) in xs.zip(ys) {
        for lane in 0..LANES {
            totals[lane] += x[lane] * y[lane];
        }
    }
    fold(totals) + tail
}

/// `Σ xᵢ yᵢ`, summed in f64 whatever the operands are.
#[inline(always)]
pub(crate) fn dot_f64<X: Element, Y: Element>(x: &[X], y: &[Y]) -> f64 {
    let mut totals = [0.0; LANES];
    let (xs, ys) = (x.chunks_exact(LANES), y.chunks_exact(LANES));
    let mut tail = 0.0;
    for (&x, &y) in xs.remainder().iter().zip(ys.remainder()) {
        tail += Element::to_f64(x) * Element::to_f64(y);
    }
    for (x, y) in xs.zip(ys) {
        for lane in 0..LANES {
            totals[lane] += Element::to_f64(x[lane]) * Element::to_f64(y[lane]);
        }
    }
    fold(totals) + tail
}

#[inline(always)]
fn dot_tail<E: Element>(x: &[E], y: &[E]) -> E {
    let mut total = E::ZERO;
    for (&x, &y) in x.iter().zip(y) {
        total += x * y;
    }
    total
}

/// `Σ xᵢ`.
#[inline(always)]
pub(crate) fn sum<E: Element>(x: &[E]) -> E {
    let mut totals = [E::ZERO; LANES];
    let chunks = x.chunks_exact(LANES);
    let mut tail = E::ZERO;
    for &x in chunks.remainder() {
        tail += x;
    }
    for x in chunks {
        for lane in 0..LANES {
            totals[lane] += x[lane];
        }
    }
    fold(totals) + tail
}

/// The largest element; minus infinity for none.
#[inline(always)]
pub(crate) fn max<E: Element>(x: &[E]) -> E {
    let mut best = [E::NEG_INFINITY; LANES];
    let chunks = x.chunks_exact(LANES);
    let mut result = E::NEG_INFINITY;
    for &x in chunks.remainder() {
        result = larger(result, x);
    }
    for x in chunks {
        for lane in 0..LANES {
            best[lane] = larger(best[lane], x[lane]);
        }
    }
    for lane in best {
        result = larger(result, lane);
    }
    result
}

#[inline(always)]
fn larger<E: Element>(a: E, b: E) -> E {
    if b > a { b } else { a }
}

#[inline(always)]
fn fold<E: Element>(mut totals: [E; LANES]) -> E {
    let mut width = LANES / 2;
    while width > 0 {
        for lane in 0..width {
            totals[lane] += totals[lane + width];
        }
        width /= 2;
    }
    totals[0]
}

/// Elements that one task of an element-wise loop works on.
pub(crate) const CHUNK: usize = 16 * 1024;

/// `y ← y + x`.
pub(crate) fn add_assign<E: Element>(y: &mut [E], x: &[E]) {
    y.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK)).for_each(|(y, x)| {
        vectorised(
            #[inline(always)]
            || {
                for (y, &x) in y.iter_mut().zip(x) {
                    *y += x;
                }
            },
        );
    });
}

/// How many rows of `cols` columns make a task of about [`CHUNK`] elements.
pub(crate) fn rows_per_task(cols: usize) -> usize {
    (CHUNK / cols.max(1)).max(1)
}

/// `e^x` in f32 to about one unit in the last place, without a branch, so that loops over it become vector code.
///
/// `x = n ln 2 + r` with `|r| ≤ ln 2 / 2`; `e^r` by the Taylor polynomial of degree 7 (remainder below 2e-9 of it), then
/// scaled by `2ⁿ` through the exponent bits. Results below the smallest normal number are 0.
#[inline(always)]
#[allow(clippy::excessive_precision, reason = "the two parts of ln 2 are given exactly")]
pub(crate) fn exp_f32(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0; // 1.5 · 2²³: adding it leaves the nearest integer in the low bits
    const LN2_HIGH: f32 = 0.693_359_375;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = (x - n * LN2_HIGH) - n * LN2_LOW;
    let mut p = 1.0 / 5040.0;
    p = p * r + 1.0 / 720.0;
    p = p * r + 1.0 / 120.0;
    p = p * r + 1.0 / 24.0;
    p = p * r + 1.0 / 6.0;
    p = p * r + 0.5;
    let e = (p * r * r + r) + 1.0;
    let exponent = shifted.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127) << 23;
    let scaled = e * f32::from_bits(exponent);
    let scaled = if x < -87.336 { 0.0 } else { scaled };
    let scaled = if x > 88.376 { large_exp(x, e, n) } else { scaled };
    if x.is_nan() { x } else { scaled }
}

/// Close to the largest number `2ⁿ` alone would overflow: scale in two steps.
#[inline(always)]
fn large_exp(x: f32, e: f32, n: f32) -> f32 {
    let near = e * f32::from_bits(((n.min(128.0) as i32 - 1 + 127) as u32) << 23) * 2.0;
    if x > 88.722_84 { f32::INFINITY } else { near }
}

/// `tanh x` in f32 through [`exp_f32`], to about 1e-7 absolute.
#[inline(always)]
pub(crate) fn tanh_f32(x: f32) -> f32 {
    let t = exp_f32(-2.0 * x.abs());
    ((1.0 - t) / (1.0 + t)).copysign(x)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_agrees_with_the_standard_library() {
        let mut worst = 0f64;
        for i in -870_000..=887_000 {
            let x = i as f32 * 1e-4;
            let (got, want) = (f64::from(exp_f32(x)), f64::from(x).exp());
            worst = worst.max(((got - want) / want).abs());
        }
        assert!(worst < 2.5e-7, "relative error {worst:e}");
        assert_eq!(exp_f32(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp_f32(f32::INFINITY), f32::INFINITY);
        assert_eq!(exp_f32(0.0), 1.0);
        assert!(exp_f32(f32::NAN).is_nan());
        assert_eq!(exp_f32(-1e30), 0.0);
        assert_eq!(exp_f32(1e30), f32::INFINITY);
    }

    #[test]
    fn tanh_agrees_with_the_standard_library() {
        for i in -20_000..=20_000 {
            let x = i as f32 * 1e-3;
            assert!((f64::from(tanh_f32(x)) - f64::from(x).tanh()).abs() < 2e-7, "tanh {x}");
        }
    }

    #[test]
    fn reductions_cover_tails_and_empty_slices() {
        for length in [0usize, 1, 15, 16, 17, 33, 123] {
            let x: Vec<f64> = (0..length).map(|i| i as f64 + 1.0).collect();
            let want = (length * (length + 1) / 2) as f64;
            assert_eq!(sum(&x), want);
            assert_eq!(dot(&x, &vec![1.0; length]), want);
            assert_eq!(dot_f64(&x, &vec![1f32; length]), want);
            assert_eq!(max(&x), if length == 0 { f64::NEG_INFINITY } else { length as f64 });
        }
    }
}
