//! Every op of the table of cases on a GPU against the CPU in f64, forward and backward.
//!
//! The GPU is the stand-in driver of `ptxsim`, with all its checks on, or a real one (`SOFTPROMPT_TEST_GPU=1`). Normalised
//! squared errors are at most 1e-10 in f32 and 1e-5 in bf16, unless that is less than bf16 can give: a result of one number
//! may be off by its rounding alone, and attention's gradients cancel in some cases. There the error may be twice what
//! rounding the result leaves, and in attention twice that of bf16 op by op.

mod cases;
#[path = "common/cuda.rs"]
mod gpu;
mod naive;

use cases::run::{Operands, gradients, operands, projection};
use cases::{Case, Input, Op, table};
use softprompt::{DType, Device};

/// Normalised squared errors allowed for the output and each gradient: `Σ (a−b)² / Σ b²`.
fn allowed(case: &Case, dtype: DType, inputs: &[Input], wanted: &[Vec<f64>]) -> Vec<f64> {
    match (dtype, &case.op) {
        (DType::BF16, Op::Attention { .. }) => {
            let values: Vec<Vec<f64>> = inputs.iter().map(|input| input.values.clone()).collect();
            let cpu = Device::cpu(Some(1)).unwrap();
            let Operands { mut tape, vars, .. } = operands(&cpu, DType::F64, inputs);
            let output = case.apply(&mut tape, &cpu, DType::F64, &vars);
            let mut d_output = projection(case, output.tensor().len());
            d_output.truncate(output.grad_rows() * output.tensor().cols());
            let plain = naive::bf16::attention(case, &values, &d_output);
            // Twice the error, so four times its square.
            plain.iter().zip(wanted).map(|(plain, want)| (4.0 * error(&plain[..want.len()], want)).max(1e-5)).collect()
        }
        (DType::BF16, _) => {
            let plain = |want: &Vec<f64>| want.iter().map(|&x| half::bf16::from_f64(x).to_f64()).collect::<Vec<_>>();
            wanted.iter().map(|want| (4.0 * error(&plain(want), want)).max(1e-5)).collect()
        }
        _ => vec![1e-10; wanted.len()],
    }
}

/// The squared error of `got` over the squares of `want`, or over a floor: numbers of about 1 cancel in some cases.
fn error(got: &[f64], want: &[f64]) -> f64 {
    assert_eq!(got.len(), want.len());
    let difference: f64 = got.iter().zip(want).map(|(a, b)| (a - b).powi(2)).sum();
    let size: f64 = want.iter().map(|x| x * x).sum();
    difference / size.max(1e-2 * want.len() as f64).max(f64::MIN_POSITIVE)
}

/// What was compared, its error, and the error that is allowed.
fn compare(case: &Case, cpu: &Device, gpu: &Device, dtype: DType) -> Vec<(String, f64, f64)> {
    let inputs = case.inputs();
    let forward = |device: &Device, dtype| {
        let Operands { mut tape, vars, .. } = operands(device, dtype, &inputs);
        case.apply(&mut tape, device, dtype, &vars).into_tensor().to_f64_vec().unwrap()
    };
    let (mut got, mut want) = (vec![forward(gpu, dtype)], vec![forward(cpu, DType::F64)]);
    got.extend(gradients(gpu, dtype, case, &inputs));
    want.extend(gradients(cpu, DType::F64, case, &inputs));
    let names = (0..got.len()).map(|i| if i == 0 { "output".into() } else { format!("gradient {}", i - 1) });
    let errors = got.iter().zip(&want).map(|(got, want)| error(got, want));
    names
        .zip(errors)
        .zip(allowed(case, dtype, &inputs, &want))
        .map(|((name, error), most)| (name, error, most))
        .collect()
}

/// Compares all cases that `wanted` picks; every one must be within the tolerance.
fn check(name: &str, dtype: DType, wanted: impl Fn(&Op) -> bool) {
    let (cpu, gpu) = (Device::cpu(Some(1)).unwrap(), gpu::cuda());
    let (mut failures, mut worst, mut count) = (Vec::new(), 0f64, 0);
    for case in table().into_iter().filter(|case| wanted(&case.op)) {
        let case = if dtype == DType::BF16 { case.in_bf16() } else { case };
        count += 1;
        for (what, error, most) in compare(&case, &cpu, &gpu, dtype) {
            worst = worst.max(error);
            if error.is_nan() || error > most {
                failures.push(format!("{what} off by {error:e} where {most:e} is allowed: {case:?}"));
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
    add_rms_norm: crate::Op::AddRmsNorm { .. },
    add_layer_norm: crate::Op::AddLayerNorm { .. },
    rope: crate::Op::Rope { .. },
    attention: crate::Op::Attention { .. },
    scale: crate::Op::Scale { .. },
    activation: crate::Op::Activation { .. },
    gated: crate::Op::Gated { .. },
    embedding: crate::Op::Embedding { .. },
    rows: crate::Op::Rows { .. },
    cross_entropy: crate::Op::CrossEntropy { .. },
    position_bias: crate::Op::PositionBias { .. },
}

/// The optimizers, and what is done to a gradient before them, on a GPU against the CPU, both in f32.
mod optimizer {
    use crate::gpu::cuda;
    use softprompt::device::{Device, Kind};
    use softprompt::optim::{AdafactorConfig, AdamWConfig, Optimizer, OptimizerConfig, clip_grad_norm, is_finite};
    use softprompt::{DType, Tensor};

    const SHAPES: [(usize, usize); 6] = [(1, 1), (2, 31), (5, 123), (130, 140), (33, 300), (3, 2056)];

    fn values(count: usize, seed: usize) -> Vec<f64> {
        (0..count).map(|i| ((i * 7919 + seed * 104_729) % 2003) as f64 / 500.0 - 2.0).collect()
    }

    fn tensor(device: &Device, (rows, cols): (usize, usize), seed: usize) -> Tensor {
        Tensor::from_f64(device, rows, cols, DType::F32, &values(rows * cols, seed), Kind::Optimizer).unwrap()
    }

    /// The parameters after three steps.
    fn train(device: &Device, config: &OptimizerConfig, shape: (usize, usize)) -> Vec<f32> {
        let mut params = tensor(device, shape, 0);
        let mut optimizer = Optimizer::new(config, &params).unwrap();
        for step in 1..=3 {
            // What the step replaces is still held elsewhere, as by a run that may have to go back.
            let held = params.clone();
            optimizer.step(&mut params, &tensor(device, shape, step), 0.05).unwrap();
            drop(held);
        }
        params.to_vec().unwrap()
    }

    #[test]
    fn adamw_has_the_same_bits() {
        let (cpu, gpu) = (Device::cpu(Some(1)).unwrap(), cuda());
        let config = OptimizerConfig::AdamW(AdamWConfig { weight_decay: 0.01, ..AdamWConfig::default() });
        for shape in SHAPES {
            assert_eq!(train(&gpu, &config, shape), train(&cpu, &config, shape), "{shape:?}");
        }
    }

    #[test]
    fn adafactor_agrees_with_its_moment_whole_and_factored() {
        let (cpu, gpu) = (Device::cpu(Some(1)).unwrap(), cuda());
        let kinds = [(128, None), (1, None), (128, Some(1e-3)), (1, Some(1e-3)), (128, Some(5.0))];
        for (shape, (min_dim_factored, parameter_scale)) in
            SHAPES.into_iter().flat_map(|shape| kinds.map(|kind| (shape, kind)))
        {
            let constants = AdafactorConfig { min_dim_factored, parameter_scale, ..AdafactorConfig::default() };
            let config = OptimizerConfig::Adafactor(constants);
            for (index, (got, want)) in train(&gpu, &config, shape).iter().zip(&train(&cpu, &config, shape)).enumerate()
            {
                assert!((got - want).abs() <= 1e-6 * want.abs().max(0.1), "{shape:?} {index}: {got} {want}");
            }
        }
    }

    #[test]
    fn a_gradient_is_clipped_as_on_the_cpu_and_one_that_is_not_finite_left_alone() {
        let (cpu, gpu) = (Device::cpu(Some(1)).unwrap(), cuda());
        for shape in SHAPES {
            for most in [0.5, 1e9, f64::INFINITY] {
                let clip = |device| {
                    let mut grad = tensor(device, shape, 1);
                    (clip_grad_norm(&mut grad, most).unwrap(), grad.to_vec::<f32>().unwrap())
                };
                let ((norm, grad), (want_norm, want)) = (clip(&gpu), clip(&cpu));
                assert!((norm - want_norm).abs() <= 1e-12 * want_norm, "{shape:?}: {norm} {want_norm}");
                assert_eq!(grad, want, "{shape:?}");
            }
            assert!(is_finite(&tensor(&gpu, shape, 1)).unwrap());
            for bad in [f64::NAN, f64::INFINITY] {
                let mut with_bad = values(shape.0 * shape.1, 1);
                *with_bad.last_mut().unwrap() = bad;
                let mut grad =
                    Tensor::from_f64(&gpu, shape.0, shape.1, DType::F32, &with_bad, Kind::Gradients).unwrap();
                assert!(!is_finite(&grad).unwrap());
                assert!(!clip_grad_norm(&mut grad, 0.5).unwrap().is_finite());
                let left = grad.to_f64_vec().unwrap();
                assert!(left.iter().zip(&with_bad).all(|(a, b)| *a == f64::from(*b as f32) || b.is_nan()));
            }
        }
        let nothing = Tensor::zeros(&gpu, 0, 5, DType::F32, Kind::Gradients);
        assert!(is_finite(&nothing).unwrap());
        assert_eq!(clip_grad_norm(&mut nothing.clone(), 1.0).unwrap(), 0.0);
    }
}
