//! Floating-point arithmetic on one value, as PTX defines it.
//!
//! NaN results are the canonical NaN of a GPU. Approximate functions are computed in f64 and rounded once: within the
//! bounds that PTX gives, and not the bits of any one GPU.

use crate::isa::{Approx, Round};
use half::{bf16, f16};

/// The NaN that GPU arithmetic gives.
pub(crate) const NAN32: u32 = 0x7fff_ffff;
const NAN16: u32 = 0x7fff;

#[inline(always)]
pub(crate) fn f(bits: u32) -> f32 {
    f32::from_bits(bits)
}

/// Bits of a result, NaN being canonical.
#[inline(always)]
pub(crate) fn bits(x: f32) -> u32 {
    if x.is_nan() { NAN32 } else { x.to_bits() }
}

#[inline(always)]
pub(crate) fn d(bits: u64) -> f64 {
    f64::from_bits(bits)
}

#[inline(always)]
pub(crate) fn bits64(x: f64) -> u64 {
    if x.is_nan() { 0x7ff8_0000_0000_0000 } else { x.to_bits() }
}

/// Subnormal to a zero of the same sign.
#[inline(always)]
pub(crate) fn flush(bits: u32) -> u32 {
    if bits & 0x7f80_0000 == 0 { bits & 0x8000_0000 } else { bits }
}

/// Clamped to [0, 1]; NaN gives 0.
#[inline(always)]
pub(crate) fn saturate(bits: u32) -> u32 {
    let x = f(bits);
    if x > 0.0 { x.min(1.0).to_bits() } else { 0 }
}

/// The smaller; -0 is below +0; a NaN loses.
#[inline(always)]
pub(crate) fn min32(a: u32, b: u32) -> u32 {
    let (x, y) = (f(a), f(b));
    if x.is_nan() {
        bits(y)
    } else if y.is_nan() || x < y {
        a
    } else if x == y {
        a | b & 0x8000_0000
    } else {
        b
    }
}

/// The larger; +0 is above -0; a NaN loses.
#[inline(always)]
pub(crate) fn max32(a: u32, b: u32) -> u32 {
    let (x, y) = (f(a), f(b));
    if x.is_nan() {
        bits(y)
    } else if y.is_nan() || x > y {
        a
    } else if x == y {
        if a >> 31 != 0 { b } else { a }
    } else {
        b
    }
}

pub(crate) fn min64(a: f64, b: f64) -> f64 {
    if a == b && a == 0.0 { if a.is_sign_negative() { a } else { b } } else { a.min(b) }
}

pub(crate) fn max64(a: f64, b: f64) -> f64 {
    if a == b && a == 0.0 { if a.is_sign_negative() { b } else { a } } else { a.max(b) }
}

/// Either NaN gives NaN.
#[inline(always)]
pub(crate) fn with_nan(a: u32, b: u32, result: u32) -> u32 {
    if f(a).is_nan() || f(b).is_nan() { NAN32 } else { result }
}

#[inline(always)]
pub(crate) fn from_bf16(bits: u32) -> f32 {
    f32::from_bits(bits << 16)
}

/// f32 to bf16, to nearest even.
#[inline(always)]
pub(crate) fn to_bf16(x: f32) -> u32 {
    let b = x.to_bits();
    let rounded = (b.wrapping_add(0x7fff + (b >> 16 & 1))) >> 16;
    if x.is_nan() { NAN16 } else { rounded }
}

pub(crate) fn from_f16(bits: u32) -> f32 {
    f16::from_bits(bits as u16).to_f32()
}

pub(crate) fn to_f16(x: f32) -> u32 {
    if x.is_nan() { NAN16 } else { f16::from_f32(x).to_bits() as u32 }
}

/// A 16-bit float format.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Half {
    F16,
    Bf16,
}

impl Half {
    #[inline(always)]
    pub(crate) fn get(self, bits: u32) -> f32 {
        match self {
            Half::F16 => from_f16(bits),
            Half::Bf16 => from_bf16(bits),
        }
    }

    #[inline(always)]
    pub(crate) fn put(self, x: f32) -> u32 {
        match self {
            Half::F16 => to_f16(x),
            Half::Bf16 => to_bf16(x),
        }
    }

    /// From f64 with one rounding.
    pub(crate) fn put64(self, x: f64) -> u32 {
        match self {
            _ if x.is_nan() => NAN16,
            Half::F16 => f16::from_f64(x).to_bits() as u32,
            Half::Bf16 => bf16::from_f64(x).to_bits() as u32,
        }
    }
}

/// `a*b + c` in a 16-bit format, rounded once. The product of two is exact in f32; the sum is made odd before it is
/// rounded, so that the second rounding cannot go wrong.
pub(crate) fn half_fma(h: Half, a: u32, b: u32, c: u32) -> u32 {
    let (a, b, c) = (h.get(a) as f64, h.get(b) as f64, h.get(c) as f64);
    let product = a * b;
    let sum = product + c;
    if !sum.is_finite() {
        return h.put64(sum);
    }
    // the error of the sum, exactly (two-sum)
    let high = sum - product;
    let error = (product - (sum - high)) + (c - high);
    h.put64(to_odd(sum, error))
}

/// `sum + error` rounded to odd: a sum that is not exact gets a last bit of one.
pub(crate) fn to_odd(sum: f64, error: f64) -> f64 {
    if error == 0.0 || !error.is_finite() || sum.to_bits() & 1 != 0 {
        return sum;
    }
    // the neighbour on the side of the error is odd
    if (error > 0.0) == (sum > 0.0) { f64::from_bits(sum.to_bits() + 1) } else { f64::from_bits(sum.to_bits() - 1) }
}

/// An approximate function, computed in f64.
pub(crate) fn approx(function: Approx, x: f32) -> f32 {
    let x = x as f64;
    let y = match function {
        Approx::Rcp => 1.0 / x,
        Approx::Sqrt => x.sqrt(),
        Approx::Rsqrt => 1.0 / x.sqrt(),
        Approx::Sin => x.sin(),
        Approx::Cos => x.cos(),
        Approx::Ex2 => x.exp2(),
        Approx::Lg2 => x.log2(),
        Approx::Tanh => x.tanh(),
    };
    y as f32
}

/// An exact value `value + error` (|error| below half a unit of `value`) rounded to f32 in a direction.
#[inline(always)]
pub(crate) fn round32(value: f64, error: f64, round: Round) -> f32 {
    let exact = |x: f64| x == value && error == 0.0;
    let near = value as f32;
    if near.is_nan() || value.is_infinite() || exact(near as f64) {
        return near;
    }
    // is the f32 below or above the exact value?
    let above = near as f64 > value || (near as f64 == value && error < 0.0);
    let down = match round {
        Round::Nearest | Round::Away => return to_odd(value, error) as f32,
        Round::Zero => value > 0.0 || (value == 0.0 && error > 0.0),
        Round::Down => true,
        Round::Up => false,
    };
    match (down, above) {
        (true, true) => near.next_down(),
        (false, false) => near.next_up(),
        _ => near,
    }
}

/// The same in f64, where the exact value is given as a sum.
pub(crate) fn round64(value: f64, error: f64, round: Round) -> f64 {
    if error == 0.0 || !value.is_finite() || !error.is_finite() {
        // overflow: directed rounding towards zero stays finite
        return match round {
            Round::Zero if value.is_infinite() && error.is_finite() => f64::MAX.copysign(value),
            Round::Down if value == f64::INFINITY && error.is_finite() => f64::MAX,
            Round::Up if value == f64::NEG_INFINITY && error.is_finite() => f64::MIN,
            _ => value,
        };
    }
    match round {
        Round::Nearest | Round::Away => value,
        Round::Zero if value > 0.0 && error < 0.0 => value.next_down(),
        Round::Zero if value < 0.0 && error > 0.0 => value.next_up(),
        Round::Down if error < 0.0 => value.next_down(),
        Round::Up if error > 0.0 => value.next_up(),
        _ => value,
    }
}
