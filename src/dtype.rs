//! Element types: what the crate computes in.
//!
//! f32 is for work, f64 for gradient checks; CPU ops are generic over the two through [`Element`]. On a GPU f32 is for
//! checks and bf16 for work: stored in 16 bits, summed in f32. How *weights* are stored (bf16, f16, quantised blocks) is
//! another matter: see [`crate::weights::Format`].

use crate::ops::simd;
use bytemuck::Pod;
use std::fmt;

/// The type of a tensor's elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum DType {
    /// 32-bit floating point, the working type.
    #[default]
    F32,
    /// 64-bit floating point, for checks; on a CPU only.
    F64,
    /// The upper half of a 32-bit floating-point number; on a GPU only.
    BF16,
}

impl DType {
    /// Bytes of one element.
    pub const fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F64 => 8,
            Self::BF16 => 2,
        }
    }

    /// The type of that name: `f32`, `f64` or `bf16`.
    pub fn named(name: &str) -> Option<Self> {
        [Self::F32, Self::F64, Self::BF16].into_iter().find(|dtype| dtype.to_string() == name)
    }

    /// The type of sums, of prompts and of what the optimizer keeps: f32 for bf16, else the type itself.
    pub const fn accumulator(self) -> Self {
        match self {
            Self::F32 | Self::BF16 => Self::F32,
            Self::F64 => Self::F64,
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::F64 => "f64",
            Self::BF16 => "bf16",
        })
    }
}

/// A number that CPU ops compute in.
pub trait Element:
    Pod
    + Copy
    + Default
    + PartialOrd
    + Send
    + Sync
    + fmt::Debug
    + std::ops::Add<Output = Self>
    + std::ops::Sub<Output = Self>
    + std::ops::Mul<Output = Self>
    + std::ops::Div<Output = Self>
    + std::ops::Neg<Output = Self>
    + std::ops::AddAssign
    + std::ops::SubAssign
    + std::ops::MulAssign
    + std::iter::Sum
    + faer::traits::ComplexField
    + 'static
{
    /// The type's tag.
    const DTYPE: DType;
    /// Zero.
    const ZERO: Self;
    /// One.
    const ONE: Self;
    /// Minus infinity, the score of a masked key.
    const NEG_INFINITY: Self;
    /// The nearest value to `x`.
    fn from_f64(x: f64) -> Self;
    /// `x` exactly.
    fn from_f32(x: f32) -> Self;
    /// The value as f64, exactly.
    fn to_f64(self) -> f64;
    /// The nearest f32.
    fn to_f32(self) -> f32;
    /// `e` to the power of the value.
    fn exp(self) -> Self;
    /// The natural logarithm.
    fn ln(self) -> Self;
    /// The square root.
    fn sqrt(self) -> Self;
    /// The hyperbolic tangent.
    fn tanh(self) -> Self;
    /// The error function, `2/√π ∫₀ˣ exp(−t²) dt`.
    fn erf(self) -> Self;
    /// The larger of the two; `other` where `self` is not a number.
    fn max(self, other: Self) -> Self;
    /// Whether the value is neither infinite nor NaN.
    fn is_finite(self) -> bool;
}

macro_rules! element {
    ($type:ident, $tag:ident, $exp:path, $tanh:path, $erf:path) => {
        impl Element for $type {
            const DTYPE: DType = DType::$tag;
            const ZERO: Self = 0.0;
            const ONE: Self = 1.0;
            const NEG_INFINITY: Self = <$type>::NEG_INFINITY;
            #[inline(always)]
            fn from_f64(x: f64) -> Self {
                x as $type
            }
            #[inline(always)]
            fn from_f32(x: f32) -> Self {
                x as $type
            }
            #[inline(always)]
            fn to_f64(self) -> f64 {
                self as f64
            }
            #[inline(always)]
            fn to_f32(self) -> f32 {
                self as f32
            }
            #[inline(always)]
            fn exp(self) -> Self {
                $exp(self)
            }
            #[inline(always)]
            fn ln(self) -> Self {
                <$type>::ln(self)
            }
            #[inline(always)]
            fn sqrt(self) -> Self {
                <$type>::sqrt(self)
            }
            #[inline(always)]
            fn tanh(self) -> Self {
                $tanh(self)
            }
            #[inline(always)]
            fn erf(self) -> Self {
                $erf(self)
            }
            #[inline(always)]
            fn max(self, other: Self) -> Self {
                <$type>::max(self, other)
            }
            #[inline(always)]
            fn is_finite(self) -> bool {
                <$type>::is_finite(self)
            }
        }
    };
}

element!(f32, F32, simd::exp_f32, simd::tanh_f32, libm::erff);
element!(f64, F64, f64::exp, f64::tanh, libm::erf);
