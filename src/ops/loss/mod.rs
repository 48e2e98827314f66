//! `cross_entropy`: the logits of the scored rows and their negative log-likelihoods in one pass.
//!
//! `nllᵢ = ln Σⱼ exp(hᵢ·Wⱼ) − hᵢ·W_label`, the loss is `Σ scaleᵢ nllᵢ`. The vocabulary is walked in chunks with a running
//! maximum, as flash attention walks keys, and the gradient `scaleᵢ (Σⱼ softmaxⱼ Wⱼ − W_label)` is summed on the same
//! walk: no logit is computed twice, and never are all of them held.
//!
//! * saves: the gradient of `h`, `[rows, d]`, already computed; if the head is trained, its gradient too
//! * backward: they, times the gradient of the loss
//!
//! The gradient of a trained head needs `softmax` itself, which is known when a row has seen the whole vocabulary: then a
//! few rows are taken at a time instead, as many as make `TRAINED_LOGITS` logits.

mod cpu;
#[allow(unsafe_code, reason = "launches kernels")]
pub(crate) mod cuda;

use crate::device::{Device, Kind};
use crate::dtype::{DType, Element};
use crate::error::{Error, Result};
use crate::tape::{Tape, Var};
use crate::tensor::{Tensor, with_element};
use crate::weights::{Matrix, Orientation};

/// Logits held at once where the head is trained, unless a single row has more.
pub(crate) const TRAINED_LOGITS: usize = 16 * 1024 * 1024;

/// What [`cross_entropy`] finds.
#[derive(Debug, Clone)]
pub struct CrossEntropy {
    /// `Σ scaleᵢ nllᵢ`, `[1, 1]`.
    pub loss: Var,
    /// The negative log-likelihood of each row's label, in nats, `[rows, 1]`. Reading it waits for a GPU.
    pub nll: Tensor,
}

/// Scores `hidden` `[rows, d]` against the head `[vocabulary, d]`: row `i` should predict `labels[i]` and counts
/// `scale[i]` in the loss.
///
/// # Errors
/// [`Error::Op`] if shapes do not fit or a label is not in the vocabulary.
pub fn cross_entropy(
    tape: &mut Tape,
    hidden: &Var,
    head: &Matrix,
    labels: &[u32],
    scale: &[f64],
) -> Result<CrossEntropy> {
    let h = hidden.tensor();
    check(h, head, labels.iter())?;
    if labels.len() != h.rows() || scale.len() != h.rows() {
        let got = format!("{} labels, {} scales", labels.len(), scale.len());
        return Err(Error::op("cross_entropy", format!("{} of each", h.rows()), got));
    }
    let node = hidden.node();
    let weight = tape.parameter(head.parameter().map(|parameter| parameter.id()), head.out_features());
    let Found { loss, nll, gradient, head_gradient } = match h.device() {
        Device::Cpu(_) => {
            let (nll, gradient, head_gradient) = with_element!(h.dtype(), E => match weight.is_tracked() {
                true => {
                    let (nll, gradient, of_head) = cpu::forward_trained::<E>(h, head, labels, scale, TRAINED_LOGITS);
                    (nll, Some(gradient), Some(of_head))
                }
                false => {
                    let wanted: Vec<(usize, u32)> = labels.iter().copied().enumerate().collect();
                    let (nll, gradient) = cpu::forward::<E>(h, head, &wanted, node.is_tracked().then_some(scale))?;
                    (nll, gradient, None)
                }
            });
            let loss: f64 = nll.iter().zip(scale).map(|(nll, scale)| nll * scale).sum();
            let column =
                |values: &[f64], dtype| Tensor::from_f64(h.device(), values.len(), 1, dtype, values, Kind::Workspace);
            Found { loss: column(&[loss], h.dtype())?, nll: column(&nll, DType::F64)?, gradient, head_gradient }
        }
        Device::Cuda(cuda) => match weight.is_tracked() {
            true => cuda::cross_entropy_trained(cuda, h, head, labels, scale, TRAINED_LOGITS)?,
            false => cuda::cross_entropy(cuda, h, head, labels, scale, node.is_tracked())?,
        },
    };
    if gradient.is_none() && head_gradient.is_none() {
        return Ok(CrossEntropy { loss: Var::constant(loss), nll });
    }

    let gradient = gradient.filter(|_| node.is_tracked());
    let gradient = gradient.map(|gradient| tape.save_prefix(&gradient, node.grad_rows()));
    let loss = tape.record(loss, 1, move |dy, gradients| {
        let scaled = |mut gradient: Tensor| -> Result<Tensor> {
            gradient.retag(Kind::Gradients);
            match dy.device() {
                Device::Cpu(_) => with_element!(dy.dtype(), E => {
                    let factor = dy.as_slice::<E>()[0];
                    if factor != <E as Element>::ONE {
                        gradient.make_mut::<E>().iter_mut().for_each(|x| *x *= factor);
                    }
                }),
                Device::Cuda(cuda) => cuda::scale(cuda, &mut gradient, &dy)?,
            }
            Ok(gradient)
        };
        if let Some(gradient) = head_gradient {
            gradients.add(weight, scaled(gradient)?)?;
        }
        match gradient {
            Some(gradient) => gradients.add(node, scaled(gradient)?),
            None => Ok(()),
        }
    });
    Ok(CrossEntropy { loss, nll })
}

/// What a device finds.
struct Found {
    /// `[1, 1]`
    loss: Tensor,
    /// `[rows, 1]`
    nll: Tensor,
    /// `[rows, d]`
    gradient: Option<Tensor>,
    /// `[vocabulary, d]`
    head_gradient: Option<Tensor>,
}

/// `ln p(token)` for each of the `wanted` (row, token) pairs, with `hidden` `[rows, d]` as in [`cross_entropy`]. A row may
/// be asked for many tokens.
///
/// # Errors
/// [`Error::Op`] if shapes do not fit, or there is no such row or token.
pub fn log_probabilities(hidden: &Tensor, head: &Matrix, wanted: &[(usize, u32)]) -> Result<Vec<f64>> {
    check(hidden, head, wanted.iter().map(|(_, token)| token))?;
    if let Some((row, _)) = wanted.iter().find(|&&(row, _)| row >= hidden.rows()) {
        return Err(Error::op("log_probabilities", format!("rows below {}", hidden.rows()), row.to_string()));
    }
    let nll = match hidden.device() {
        Device::Cpu(_) => with_element!(hidden.dtype(), E => cpu::forward::<E>(hidden, head, wanted, None)?.0),
        Device::Cuda(cuda) => cuda::negative_log_likelihoods(cuda, hidden, head, wanted)?,
    };
    Ok(nll.into_iter().map(|nll| -nll).collect())
}

fn check<'a>(hidden: &Tensor, head: &Matrix, mut tokens: impl Iterator<Item = &'a u32>) -> Result<()> {
    if hidden.cols() != head.in_features() || head.orientation() != Orientation::RowPerOutput {
        return Err(Error::op("cross_entropy", format!("[_, {}]", head.in_features()), hidden.describe()));
    }
    match tokens.find(|&&id| id as usize >= head.out_features()) {
        Some(id) => Err(Error::op("cross_entropy", format!("tokens below {}", head.out_features()), id.to_string())),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Device;
    use crate::weights::{Parameter, ParameterPlace, StoredTensor};
    use std::sync::Arc;

    /// More tokens than fit in one chunk of the vocabulary, and a last chunk that is not full.
    const TOKENS: usize = 4500;

    #[test]
    fn log_probabilities_are_those_of_a_plain_softmax() {
        let device = Device::cpu(Some(2)).unwrap();
        let (rows, width) = (3, 5);
        let wave = |count: usize, step: f64| (0..count).map(|i| 3.0 * (i as f64 * step).sin()).collect::<Vec<f64>>();
        let (h, w) = (wave(rows * width, 1.3), wave(TOKENS * width, 0.7));
        let stored = StoredTensor::from_values("head", &[TOKENS, width], w.clone()).unwrap();
        let head = Matrix::new(stored, Orientation::RowPerOutput).unwrap();
        let hidden = Tensor::from_f64(&device, rows, width, crate::dtype::DType::F64, &h, Kind::Workspace).unwrap();
        let logit =
            |row: usize, token: usize| -> f64 { (0..width).map(|i| h[row * width + i] * w[token * width + i]).sum() };
        // Any order, a pair twice, both ends of the vocabulary, a row that nothing is asked of.
        let wanted = [(2, 4499), (0, 0), (2, 4031), (2, 4032), (0, 77), (2, 4499)];
        let found = log_probabilities(&hidden, &head, &wanted).unwrap();
        assert_eq!(found.len(), wanted.len());
        for (&(row, token), found) in wanted.iter().zip(&found) {
            let largest = (0..TOKENS).map(|token| logit(row, token)).fold(f64::NEG_INFINITY, f64::max);
            let total: f64 = (0..TOKENS).map(|token| (logit(row, token) - largest).exp()).sum();
            let want = logit(row, token as usize) - largest - total.ln();
            assert!((found - want).abs() <= 1e-12 * want.abs(), "row {row}, token {token}: {found} {want}");
        }
        assert!(log_probabilities(&hidden, &head, &[]).unwrap().is_empty());
        assert!(log_probabilities(&hidden, &head, &[(3, 0)]).is_err());
        assert!(log_probabilities(&hidden, &head, &[(0, TOKENS as u32)]).is_err());
    }

    /// Loss and the gradients by the rows and by a head that is trained.
    fn trained(device: &Device, dtype: DType, at_once: usize) -> [Vec<f64>; 3] {
        const SHAPE: (usize, usize, usize) = (23, 61, 12);
        let (rows, vocabulary, width) = SHAPE;
        // Exact in bf16.
        let wave = |count: usize, step: usize| -> Vec<f64> {
            (0..count).map(|i| (i * step % 127) as f64 / 64.0 - 1.0).collect()
        };
        let tensor =
            |rows, values: &[f64]| Tensor::from_f64(device, rows, width, dtype, values, Kind::Workspace).unwrap();
        let (hidden, value) =
            (tensor(rows, &wave(rows * width, 29)), tensor(vocabulary, &wave(vocabulary * width, 53)));
        let place = ParameterPlace { name: "head".into(), shape: vec![vocabulary, width], rows: 0..1, cols: 0..1 };
        let head = Matrix::trained(Arc::new(Parameter::new(0, place, value)), Orientation::RowPerOutput);
        let labels: Vec<u32> = (0..rows as u32).map(|row| row * 7 % 61).collect();
        let scales: Vec<f64> = wave(rows, 31);
        match device {
            Device::Cpu(_) => {
                let (nll, dh, dw) = cpu::forward_trained::<f64>(&hidden, &head, &labels, &scales, at_once);
                [nll, dh.to_f64_vec().unwrap(), dw.to_f64_vec().unwrap()]
            }
            Device::Cuda(cuda) => {
                let found = cuda::cross_entropy_trained(cuda, &hidden, &head, &labels, &scales, at_once).unwrap();
                let (dh, dw) = (found.gradient.unwrap(), found.head_gradient.unwrap());
                assert_eq!((dh.dtype(), dw.dtype()), (dtype, dtype));
                [found.nll, dh, dw].map(|tensor| tensor.to_f64_vec().unwrap())
            }
        }
    }

    #[test]
    fn a_trained_heads_gradient_is_the_same_however_many_rows_are_taken_at_once() {
        if std::env::var_os("SOFTPROMPT_TEST_GPU").is_none_or(|value| value != "1") {
            ptxsim::standin::install(&ptxsim::standin::Library::ALL).unwrap();
        }
        let cpu = Device::cpu(Some(2)).unwrap();
        let gpu = Device::cuda(crate::device::CudaOptions { pooled: false, ..Default::default() }).unwrap();
        let want = trained(&cpu, DType::F64, TRAINED_LOGITS);
        let checks = [(&cpu, DType::F64, 1e-28), (&gpu, DType::F32, 1e-12), (&gpu, DType::BF16, 1e-5)];
        for (device, dtype, most) in checks {
            // All, several and a rest, one at a time because a row has more.
            for at_once in [TRAINED_LOGITS, 9 * 61, 61, 1] {
                for (index, (got, want)) in trained(device, dtype, at_once).iter().zip(&want).enumerate() {
                    let error: f64 = got.iter().zip(want).map(|(a, b)| (a - b).powi(2)).sum();
                    let error = error / want.iter().map(|x| x * x).sum::<f64>();
                    assert!(error <= most, "{dtype}, {at_once} at once, result {index}: {error:e}");
                }
            }
        }
    }
}
