//! Every op of the table of cases on a GPU against the CPU in f64, forward and backward.
//!
//! The GPU is the stand-in driver of `ptxsim`, with all its checks on, or a real one (`SOFTPROMPT_TEST_GPU=1`).

mod cases;
#[path = "common/cuda.rs"]
mod gpu;

use cases::run::{Operands, gradients, operands};
use cases::{Case, Op, table};
use softprompt::{DType, Device};

/// Normalised squared error allowed: `Σ (a−b)² / Σ b²`.
fn allowed(dtype: DType) -> f64 {
    if dtype == DType::BF16 { 1e-5 } else { 1e-10 }
}

/// The squared error of `got` over the squares of `want`, or over a floor: numbers of about 1 cancel in some cases.
fn error(got: &[f64], want: &[f64]) -> f64 {
    assert_eq!(got.len(), want.len());
    let difference: f64 = got.iter().zip(want).map(|(a, b)| (a - b).powi(2)).sum();
    let size: f64 = want.iter().map(|x| x * x).sum();
    difference / size.max(1e-2 * want.len() as f64).max(f64::MIN_POSITIVE)
}

fn compare(case: &Case, cpu: &Device, gpu: &Device, dtype: DType) -> Vec<(String, f64)> {
    let inputs = case.inputs();
    let forward = |device: &Device, dtype| {
        let Operands { mut tape, vars, .. } = operands(device, dtype, &inputs);
        case.apply(&mut tape, device, dtype, &vars).into_tensor().to_f64_vec().unwrap()
    };
    let mut errors = vec![("forward".to_string(), error(&forward(gpu, dtype), &forward(cpu, DType::F64)))];
    let (got, want) = (gradients(gpu, dtype, case, &inputs), gradients(cpu, DType::F64, case, &inputs));
    for (which, (got, want)) in got.iter().zip(&want).enumerate() {
        errors.push((format!("gradient {which}"), error(got, want)));
    }
    errors
}

/// Compares all cases that `wanted` picks; every one must be within the tolerance.
fn check(name: &str, dtype: DType, wanted: impl Fn(&Op) -> bool) {
    let (cpu, gpu) = (Device::cpu(Some(1)).unwrap(), gpu::cuda());
    let (mut failures, mut worst, mut count) = (Vec::new(), 0f64, 0);
    for case in table().into_iter().filter(|case| wanted(&case.op)) {
        let case = if dtype == DType::BF16 { case.in_bf16() } else { case };
        count += 1;
        for (what, error) in compare(&case, &cpu, &gpu, dtype) {
            worst = worst.max(error);
            if error.is_nan() || error > allowed(dtype) {
                failures.push(format!("{what} off by {error:e}: {case:?}"));
            }
        }
    }
    println!("{name} {dtype}: {count} cases, worst normalised squared error {worst:e}");
    assert!(count > 0, "no case of {name}");
    assert!(failures.is_empty(), "{} failures in {count} cases:\n{}", failures.len(), failures.join("\n"));
}

macro_rules! parity {
    ($($name:ident: $pattern:pat,)*) => {
        mod f32 {
            $(#[test]
            fn $name() {
                super::check(stringify!($name), softprompt::DType::F32, |op| matches!(op, $pattern));
            })*
        }
        mod bf16 {
            $(#[test]
            fn $name() {
                super::check(stringify!($name), softprompt::DType::BF16, |op| matches!(op, $pattern));
            })*
        }
    };
}

parity! {
    linear: crate::Op::Linear { .. },
    add: crate::Op::Add { .. },
    rms_norm: crate::Op::RmsNorm { .. },
    layer_norm: crate::Op::LayerNorm { .. },
    rope: crate::Op::Rope { .. },
    attention: crate::Op::Attention { .. },
    activation: crate::Op::Activation { .. },
    gated: crate::Op::Gated { .. },
    embedding: crate::Op::Embedding { .. },
    rows: crate::Op::Rows { .. },
    cross_entropy: crate::Op::CrossEntropy { .. },
}
