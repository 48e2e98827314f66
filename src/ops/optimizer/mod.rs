//! `optimizer`: what a step of training does to the prompt `[P, d]`, or to a weight, where it is: the updates of AdamW and
//! Adafactor, and clipping the gradient.
//!
//! All arithmetic is done in the prompt's type, but for sums, which are f64; there is one order on a device, so equal input
//! gives equal bits. `crate::optim` has the formulas' constants and the state.

mod cpu;
#[allow(unsafe_code, reason = "kernel launches")]
mod cuda;

use crate::device::Device;
use crate::dtype::{DType, Element};
use crate::error::{Error, Result};
use crate::tensor::{Tensor, with_element};

/// The numbers of one AdamW step: they depend on the step, not on the parameters.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamWStep {
    /// What the gradient is multiplied by before all else.
    pub factor: f64,
    /// `1 − lr·wd`: what a parameter is multiplied by.
    pub keep: f64,
    /// `1 − β₁`: how far the first moment goes towards the gradient.
    pub towards: f64,
    /// `β₂`
    pub decay: f64,
    /// `1 − β₂`
    pub share: f64,
    /// `−lr / (1 − β₁ᵗ)`
    pub size: f64,
    /// `√(1 − β₂ᵗ)`
    pub correction: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
}

/// With `g` the gradient times `factor`: `p ← keep·p`, `m ← m + towards·(g − m)`, `v ← decay·v + share·g²`, `p ← p + size·m / (√v/correction + ε)`.
///
/// # Errors
/// [`Error::Op`] where shapes or types differ; [`Error::Device`] where a GPU fails.
pub fn adamw(params: &mut Tensor, grad: &Tensor, m: &mut Tensor, v: &mut Tensor, step: &AdamWStep) -> Result<()> {
    check("AdamW", params, [grad, m, v])?;
    match grad.device() {
        Device::Cpu(_) => with_element!(grad.dtype(), E => cpu::adamw::<E>(params, grad, m, v, step)),
        Device::Cuda(cuda) => cuda::adamw(cuda, params, grad, m, v, step, None)?,
    }
    Ok(())
}

/// [`adamw`] of a weight that is held in bf16, as its gradient is: the step is taken on `params`, a copy in f32, and `value`
/// becomes what that rounds to.
///
/// # Errors
/// As [`adamw`]; on a CPU, which does not compute in bf16.
pub fn adamw_rounded(
    params: &mut Tensor,
    grad: &Tensor,
    m: &mut Tensor,
    v: &mut Tensor,
    step: &AdamWStep,
    value: &mut Tensor,
) -> Result<()> {
    check("AdamW", params, [params, m, v])?;
    let of = |dtype| (params.rows(), params.cols(), dtype);
    for tensor in [grad, value] {
        if (tensor.rows(), tensor.cols(), tensor.dtype()) != of(DType::BF16) || params.dtype() != DType::F32 {
            return Err(Error::op("AdamW", "bf16 beside a copy in f32 of one shape", tensor.describe()));
        }
    }
    match grad.device() {
        Device::Cpu(_) => Err(Error::op("AdamW", "f32 or f64 on a CPU", grad.describe())),
        Device::Cuda(cuda) => cuda::adamw(cuda, params, grad, m, v, step, Some(value)),
    }
}

/// The numbers of one Adafactor step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdafactorStep {
    /// `1 − β_t`: how much of the second moment is new.
    pub share: f64,
    /// Added to the squared gradient.
    pub eps: f64,
    /// The root mean square above which the update is scaled down to it.
    pub clip_threshold: f64,
    /// `1 − wd`: what a parameter is multiplied by.
    pub keep: f64,
    /// The learning rate.
    pub lr: f64,
    /// The update is multiplied by the root mean square of the parameters, or by this where they have less; `None`: it is
    /// not.
    pub parameter_scale: Option<f64>,
}

/// `v ← (1−share)·v + share·(g²+ε)`, `y = g/√v`, `y ← y / max(1, RMS(y)/clip)`, `p ← keep·p − lr·s·y`, with `s` 1, or
/// `max(parameter_scale, RMS(p))`.
///
/// # Errors
/// As [`adamw`].
pub fn adafactor(params: &mut Tensor, grad: &Tensor, v: &mut Tensor, step: &AdafactorStep) -> Result<()> {
    check("Adafactor", params, [grad, v, grad])?;
    if grad.is_empty() {
        return Ok(());
    }
    match grad.device() {
        Device::Cpu(_) => with_element!(grad.dtype(), E => cpu::adafactor::<E>(params, grad, v, step)),
        Device::Cuda(cuda) => cuda::adafactor(cuda, params, grad, v, step)?,
    }
    Ok(())
}

/// [`adafactor`] with the second moment as its row means `[1, P]` and column means `[1, d]`:
/// `v ≈ rows · cols / mean(rows)`.
///
/// # Errors
/// As [`adamw`].
pub fn adafactor_factored(
    params: &mut Tensor,
    grad: &Tensor,
    rows: &mut Tensor,
    cols: &mut Tensor,
    step: &AdafactorStep,
) -> Result<()> {
    check("Adafactor", params, [grad, grad, grad])?;
    for (mean, length) in [(&*rows, grad.rows()), (&*cols, grad.cols())] {
        if (mean.rows(), mean.cols(), mean.dtype()) != (1, length, grad.dtype()) {
            return Err(Error::op("Adafactor", format!("means [1, {length}] {}", grad.dtype()), mean.describe()));
        }
    }
    if grad.is_empty() {
        return Ok(());
    }
    match grad.device() {
        Device::Cpu(_) => {
            with_element!(grad.dtype(), E => cpu::adafactor_factored::<E>(params, grad, rows, cols, step))
        }
        Device::Cuda(cuda) => cuda::adafactor_factored(cuda, params, grad, rows, cols, step)?,
    }
    Ok(())
}

/// Scales `grad` down so that its Euclidean norm is at most `max_norm`, and gives the norm it had.
///
/// As `torch.nn.utils.clip_grad_norm_`: `g ← g · min(1, max_norm / (norm + 10⁻⁶))`. Where the norm is not finite the
/// gradient is left as it is: the caller sees the norm and stops.
///
/// # Errors
/// [`Error::Device`] where a GPU fails.
pub fn clip_grad_norm(grad: &mut Tensor, max_norm: f64) -> Result<f64> {
    match grad.device().clone() {
        Device::Cpu(_) => {
            let norm = grad_norm(std::slice::from_ref(grad))?;
            scale(grad, clip_factor(norm, max_norm))?;
            Ok(norm)
        }
        Device::Cuda(cuda) => cuda::clip_grad_norm(&cuda, grad, max_norm),
    }
}

/// The Euclidean norm of all gradients together; a GPU is waited for. All are on one device.
///
/// # Errors
/// [`Error::Device`] where a GPU fails.
pub fn grad_norm(grads: &[Tensor]) -> Result<f64> {
    let Some(first) = grads.first() else { return Ok(0.0) };
    match first.device().clone() {
        Device::Cpu(_) => {
            let squares = |grad: &Tensor| with_element!(grad.dtype(), E => cpu::sum_of_squares(grad.as_slice::<E>()));
            Ok(grads.iter().map(squares).sum::<f64>().sqrt())
        }
        Device::Cuda(cuda) => cuda::grad_norm(&cuda, grads),
    }
}

/// What brings gradients of that norm to at most `max_norm`: 1 where they are, or where the norm is not finite.
pub fn clip_factor(norm: f64, max_norm: f64) -> f64 {
    let factor = max_norm / (norm + 1e-6);
    if norm.is_finite() && factor < 1.0 { factor } else { 1.0 }
}

/// Multiplies every element by `factor`, f32 or f64.
///
/// # Errors
/// [`Error::Device`] where a GPU fails.
pub fn scale(grad: &mut Tensor, factor: f64) -> Result<()> {
    if factor == 1.0 || grad.is_empty() {
        return Ok(());
    }
    match grad.device().clone() {
        Device::Cpu(_) => with_element!(grad.dtype(), E => cpu::scale(grad.make_mut::<E>(), E::from_f64(factor))),
        Device::Cuda(cuda) => cuda::scale(&cuda, grad, factor)?,
    }
    Ok(())
}

/// Whether every element is neither infinite nor NaN.
///
/// # Errors
/// [`Error::Device`] where a GPU fails.
pub fn is_finite(x: &Tensor) -> Result<bool> {
    match x.device() {
        Device::Cpu(_) => {
            Ok(with_element!(x.dtype(), E => x.as_slice::<E>().iter().all(|x| crate::dtype::Element::is_finite(*x))))
        }
        Device::Cuda(cuda) => cuda::is_finite(cuda, x),
    }
}

fn check(op: &'static str, params: &Tensor, others: [&Tensor; 3]) -> Result<()> {
    let shape = |tensor: &Tensor| (tensor.rows(), tensor.cols(), tensor.dtype());
    match others.into_iter().find(|other| shape(other) != shape(params)) {
        None => Ok(()),
        Some(other) => Err(Error::op(op, params.describe(), other.describe())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Kind;
    use crate::dtype::DType;

    #[test]
    fn clipping_is_torchs() {
        let device = Device::cpu(Some(1)).unwrap();
        let row =
            |values: &[f64], dtype| Tensor::from_f64(&device, 1, values.len(), dtype, values, Kind::Gradients).unwrap();
        let mut grad = row(&[3.0, 4.0], DType::F64);
        assert_eq!(clip_grad_norm(&mut grad, 1.0).unwrap(), 5.0);
        for (got, want) in grad.as_slice::<f64>().iter().zip([0.599999880000024, 0.799999840000032]) {
            assert!((got - want).abs() < 1e-15, "{got} {want}");
        }
        let mut small = row(&[0.3, 0.4], DType::F32);
        assert!((clip_grad_norm(&mut small, 1.0).unwrap() - 0.5).abs() < 1e-7);
        assert_eq!(small.as_slice::<f32>(), [0.3, 0.4]);
        let mut broken = row(&[f64::NAN, 9.0], DType::F32);
        assert!(clip_grad_norm(&mut broken, 1.0).unwrap().is_nan());
        assert_eq!(broken.as_slice::<f32>()[1], 9.0);
        assert!(!is_finite(&broken).unwrap() && is_finite(&small).unwrap());
        assert_eq!(clip_grad_norm(&mut row(&[], DType::F32), 1.0).unwrap(), 0.0);
    }
}
