//! `activation`: `y = f(x)`, element by element.
//!
//! * saves: the gradient rows of `x`
//! * backward: `dx = dy f'(x)`, in place

#[allow(unsafe_code, reason = "kernel launches")]
mod cuda;

use crate::device::{Device, Kind};
use crate::dtype::Element;
use crate::error::Result;
use crate::ops::simd::{CHUNK, vectorised};
use crate::tape::{Tape, Var};
use crate::tensor::{Tensor, with_element};
use rayon::prelude::*;

/// An activation function, under the name that Hugging Face configs give it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// `max(x, 0)`: `relu`.
    Relu,
    /// `x Φ(x)` with the normal distribution's Φ: `gelu`.
    Gelu,
    /// `x/2 (1 + tanh(√(2/π) (x + 0.044715 x³)))`: `gelu_new`, `gelu_pytorch_tanh`.
    GeluTanh,
    /// `x / (1 + e⁻ˣ)`: `silu`, `swish`.
    Silu,
}

impl Activation {
    /// The name that kernels know it by.
    pub(crate) fn kernel_name(self) -> &'static str {
        match self {
            Self::Relu => "relu",
            Self::Gelu => "gelu",
            Self::GeluTanh => "gelu_tanh",
            Self::Silu => "silu",
        }
    }

    /// Its name in a Hugging Face config.
    pub fn name(self) -> &'static str {
        match self {
            Self::Relu => "relu",
            Self::Gelu => "gelu",
            Self::GeluTanh => "gelu_new",
            Self::Silu => "silu",
        }
    }

    /// The function of that name in a Hugging Face config, if it is one of these.
    pub fn named(name: &str) -> Option<Self> {
        Some(match name {
            "relu" => Self::Relu,
            "gelu" => Self::Gelu,
            "gelu_new" | "gelu_pytorch_tanh" => Self::GeluTanh,
            "silu" | "swish" => Self::Silu,
            _ => return None,
        })
    }
}

/// `f` with its derivative, so that a loop over either is compiled for the one function.
pub(crate) trait Function<E> {
    /// `f(x)`
    fn value(x: E) -> E;
    /// `(f(x), f'(x))`
    fn value_and_slope(x: E) -> (E, E);
}

pub(crate) struct Relu;
pub(crate) struct Gelu;
pub(crate) struct GeluTanh;
pub(crate) struct Silu;

impl<E: Element> Function<E> for Relu {
    #[inline(always)]
    fn value(x: E) -> E {
        // Not `max`: a NaN must stay one.
        if x < E::ZERO { E::ZERO } else { x }
    }
    #[inline(always)]
    fn value_and_slope(x: E) -> (E, E) {
        (Self::value(x), if x > E::ZERO { E::ONE } else { E::ZERO })
    }
}

impl<E: Element> Function<E> for Gelu {
    #[inline(always)]
    fn value(x: E) -> E {
        let phi = E::from_f64(0.5) * (E::ONE + (x * E::from_f64(std::f64::consts::FRAC_1_SQRT_2)).erf());
        x * phi
    }
    #[inline(always)]
    fn value_and_slope(x: E) -> (E, E) {
        let phi = E::from_f64(0.5) * (E::ONE + (x * E::from_f64(std::f64::consts::FRAC_1_SQRT_2)).erf());
        let density = E::from_f64(0.398_942_280_401_432_7) * (E::from_f64(-0.5) * x * x).exp();
        (x * phi, phi + x * density)
    }
}

const GELU_CUBIC: f64 = 0.044_715;
const SQRT_2_OVER_PI: f64 = 0.797_884_560_802_865_4;

impl<E: Element> Function<E> for GeluTanh {
    #[inline(always)]
    fn value(x: E) -> E {
        let inner = E::from_f64(SQRT_2_OVER_PI) * (x + E::from_f64(GELU_CUBIC) * x * x * x);
        E::from_f64(0.5) * x * (E::ONE + inner.tanh())
    }
    #[inline(always)]
    fn value_and_slope(x: E) -> (E, E) {
        let (half, cubic) = (E::from_f64(0.5), E::from_f64(GELU_CUBIC));
        let t = (E::from_f64(SQRT_2_OVER_PI) * (x + cubic * x * x * x)).tanh();
        let inner_slope = E::from_f64(SQRT_2_OVER_PI) * (E::ONE + E::from_f64(3.0) * cubic * x * x);
        (half * x * (E::ONE + t), half * (E::ONE + t) + half * x * (E::ONE - t * t) * inner_slope)
    }
}

impl<E: Element> Function<E> for Silu {
    #[inline(always)]
    fn value(x: E) -> E {
        x / (E::ONE + (-x).exp())
    }
    #[inline(always)]
    fn value_and_slope(x: E) -> (E, E) {
        let sigmoid = E::ONE / (E::ONE + (-x).exp());
        (x * sigmoid, sigmoid * (E::ONE + x * (E::ONE - sigmoid)))
    }
}

/// Runs an expression with `$F` bound to the [`Function`] of an [`Activation`].
macro_rules! with_function {
    ($activation:expr, $F:ident => $body:expr) => {
        match $activation {
            $crate::ops::activation::Activation::Relu => {
                type $F = $crate::ops::activation::Relu;
                $body
            }
            $crate::ops::activation::Activation::Gelu => {
                type $F = $crate::ops::activation::Gelu;
                $body
            }
            $crate::ops::activation::Activation::GeluTanh => {
                type $F = $crate::ops::activation::GeluTanh;
                $body
            }
            $crate::ops::activation::Activation::Silu => {
                type $F = $crate::ops::activation::Silu;
                $body
            }
        }
    };
}
pub(crate) use with_function;

/// `function` of every element of `x`.
///
/// # Errors
/// None of its own.
pub fn activation(tape: &mut Tape, x: &Var, function: Activation) -> Result<Var> {
    let input = x.tensor();
    let mut output = Tensor::scratch(input.device(), input.rows(), input.cols(), input.dtype(), Kind::Workspace);
    match input.device() {
        Device::Cpu(_) => {
            with_element!(input.dtype(), E => with_function!(function, F => forward::<E, F>(input, &mut output)));
        }
        Device::Cuda(cuda) => cuda::forward(cuda, function, input, &mut output)?,
    }
    let node = x.node();
    if !node.is_tracked() {
        return Ok(Var::constant(output));
    }
    let saved = tape.save_prefix(input, node.grad_rows());
    Ok(tape.record(output, node.grad_rows(), move |mut dy, gradients| {
        match dy.device().clone() {
            Device::Cpu(_) => {
                with_element!(dy.dtype(), E => with_function!(function, F => backward::<E, F>(&mut dy, &saved)));
            }
            Device::Cuda(cuda) => cuda::backward(&cuda, function, &mut dy, &saved)?,
        }
        gradients.add(node, dy)
    }))
}

fn forward<E: Element, F: Function<E>>(x: &Tensor, y: &mut Tensor) {
    y.make_mut::<E>().par_chunks_mut(CHUNK).zip(x.as_slice::<E>().par_chunks(CHUNK)).for_each(|(y, x)| {
        vectorised(
            #[inline(always)]
            || {
                for (y, &x) in y.iter_mut().zip(x) {
                    *y = F::value(x);
                }
            },
        );
    });
}

fn backward<E: Element, F: Function<E>>(dy: &mut Tensor, x: &Tensor) {
    dy.make_mut::<E>().par_chunks_mut(CHUNK).zip(x.as_slice::<E>().par_chunks(CHUNK)).for_each(|(dy, x)| {
        vectorised(
            #[inline(always)]
            || {
                for (dy, &x) in dy.iter_mut().zip(x) {
                    *dy *= F::value_and_slope(x).1;
                }
            },
        );
    });
}
