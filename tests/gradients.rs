//! Every op of the table of cases against a naive forward pass and against central differences.

mod cases;
mod common;
mod naive;

use cases::run::{Operands, functional, gradients, operands, projection, variable};
use cases::{Case, Input, Op, Random, table, tensor};
use common::{close, close_absolute};
use softprompt::device::Kind;
use softprompt::indices::Indices;
use softprompt::ops;
use softprompt::tape::{Tape, Var};
use softprompt::weights::Orientation;
use softprompt::{DType, Device, Tensor};

/// The functional without a tape, in f64.
fn value(device: &Device, case: &Case, inputs: &[Input]) -> f64 {
    let vars: Vec<Var> = inputs
        .iter()
        .map(|input| Var::constant(tensor(device, DType::F64, input.rows, input.cols, &input.values)))
        .collect();
    let y = case.apply(&mut Tape::new(), device, DType::F64, &vars).into_tensor().to_f64_vec().unwrap();
    y.iter().zip(projection(case, y.len())).map(|(y, c)| y * c).sum()
}

/// The derivative along `direction` in the gradient rows of input `which`, by differences of fourth order.
fn difference(device: &Device, case: &Case, inputs: &[Input], which: usize, direction: &[f64]) -> f64 {
    const STEP: f64 = 1e-3;
    let at = |distance: f64| {
        let mut moved = inputs.to_vec();
        for (x, d) in moved[which].values.iter_mut().zip(direction) {
            *x += distance * d;
        }
        value(device, case, &moved)
    };
    (8.0 * (at(STEP) - at(-STEP)) - (at(2.0 * STEP) - at(-2.0 * STEP))) / (12.0 * STEP)
}

/// Elements to differentiate by: all of a small input, otherwise the ends and some between.
fn sample(case: &Case, length: usize) -> Vec<usize> {
    if length <= 12 {
        return (0..length).collect();
    }
    let mut random = Random::new(case.seed ^ 123);
    [0, length - 1].into_iter().chain((0..4).map(|_| random.below(length))).collect()
}

#[test]
fn forward_is_the_formula() {
    let device = Device::cpu(Some(2)).unwrap();
    for case in table() {
        let inputs = case.inputs();
        let values: Vec<Vec<f64>> = inputs.iter().map(|input| input.values.clone()).collect();
        let want = naive::forward(&case, &values);
        for (dtype, tolerance) in [(DType::F64, 1e-12), (DType::F32, 2e-6)] {
            let Operands { mut tape, vars, .. } = operands(&device, dtype, &inputs);
            let got = case.apply(&mut tape, &device, dtype, &vars).into_tensor();
            if want.is_empty() {
                assert!(got.is_empty(), "{case:?}");
                continue;
            }
            // Operands are of about 1: where a result is much smaller, f32 has cancelled and the operands are the scale.
            let scale = largest(&want).max(if dtype == DType::F32 { 1.0 } else { 1e-3 });
            close_absolute(&format!("{case:?} {dtype}"), &got.to_f64_vec().unwrap(), &want, tolerance * scale);
        }
    }
}

#[test]
fn gradients_are_central_differences() {
    let (device, mut worst) = (Device::cpu(Some(2)).unwrap(), 0f64);
    for case in table() {
        let inputs = case.inputs();
        let found = gradients(&device, DType::F64, &case, &inputs);
        for (which, gradient) in found.iter().enumerate() {
            if gradient.is_empty() {
                continue;
            }
            let (mut got, mut want) = (Vec::new(), Vec::new());
            for element in sample(&case, gradient.len()) {
                let mut direction = vec![0.0; gradient.len()];
                direction[element] = 1.0;
                got.push(gradient[element]);
                want.push(difference(&device, &case, &inputs, which, &direction));
            }
            // One direction that all of them share in, of a length like a single element's.
            let mut random = Random::new(case.seed ^ 321);
            let scale = 1.0 / (gradient.len() as f64).sqrt();
            let direction: Vec<f64> = random.numbers(gradient.len()).iter().map(|x| x * scale).collect();
            got.push(gradient.iter().zip(&direction).map(|(g, d)| g * d).sum());
            want.push(difference(&device, &case, &inputs, which, &direction));
            let size = (gradient.iter().map(|g| g * g).sum::<f64>() / gradient.len() as f64).sqrt();
            for (at, (got, want)) in got.iter().zip(&want).enumerate() {
                // A gradient of exactly 0 must be found as 0, up to what a difference can tell.
                let error = (got - want).abs() / size.max(want.abs()).max(1e-3);
                assert!(error <= 1e-6, "{case:?} input {which} sample {at}: got {got}, want {want}: {error:e}");
                worst = worst.max(error);
            }
        }
    }
    println!("worst relative error against differences {worst:e}");
}

#[test]
fn gradients_in_f32_are_those_in_f64() {
    let (device, mut worst) = (Device::cpu(Some(2)).unwrap(), 0f64);
    for case in table() {
        let inputs = case.inputs();
        let single = gradients(&device, DType::F32, &case, &inputs);
        let double = gradients(&device, DType::F64, &case, &inputs);
        for (which, (single, double)) in single.iter().zip(&double).enumerate() {
            let error: f64 = single.iter().zip(double).map(|(a, b)| (a - b).powi(2)).sum();
            let size: f64 = double.iter().map(|x| x * x).sum();
            // Numbers of about 1 cancel in some: a floor of what they leave.
            let error = error / size.max(1e-2 * double.len() as f64).max(f64::MIN_POSITIVE);
            assert!(error <= 1e-10, "{case:?} input {which}: normalised squared error {error:e}");
            worst = worst.max(error);
        }
    }
    println!("worst normalised squared error of f32 {worst:e}");
}

#[test]
fn a_variable_read_by_several_ops_gets_the_sum() {
    let device = Device::cpu(Some(2)).unwrap();
    for (rows, grad) in [(7, 7), (7, 3)] {
        let input =
            Input { rows, cols: 12, grad, values: Random::new(5).numbers(rows * 12), parameter: None, is_wide: false };
        let weight = cases::Weight {
            outputs: 12,
            inputs: 12,
            orientation: Orientation::RowPerInput,
            format: softprompt::weights::Format::F64,
            part: None,
        };
        let norm = Var::constant(tensor(&device, DType::F64, 1, 12, &Random::new(6).numbers(12)));
        let index = Indices::from(vec![2, 6, 2, 0, 1, 5, 4]);
        // Bit i takes reader i.
        let run = |readers: usize| {
            let mut tape = Tape::new();
            let (leaf, x) = variable(&mut tape, &device, DType::F64, &input);
            let mut sum = Var::constant(Tensor::zeros(&device, rows, 12, DType::F64, Kind::Workspace));
            for reader in (0..6).filter(|reader| readers >> reader & 1 == 1) {
                let y = match reader {
                    0 => ops::linear(&mut tape, &x, &weight.matrix(1, false), None).unwrap(),
                    1 => ops::rms_norm(&mut tape, &x, &norm, 1e-5).unwrap(),
                    2 => ops::rows(&mut tape, &x, &index).unwrap(),
                    3 => x.clone(),
                    4 => ops::layer_norm(&mut tape, &x, &norm, &norm, 1e-5).unwrap(),
                    _ => ops::add(&mut tape, &x, x.clone()).unwrap(),
                };
                sum = ops::add(&mut tape, &sum, y).unwrap();
            }
            let total = functional(&mut tape, &sum, &Random::new(8).numbers(rows * 12));
            tape.backward(&total, &leaf.unwrap()).unwrap().to_f64_vec().unwrap()
        };
        let alone: Vec<Vec<f64>> = (0..6).map(|reader| run(1 << reader)).collect();
        for readers in 1..64usize {
            let mut want = vec![0.0; grad * 12];
            for reader in (0..6).filter(|reader| readers >> reader & 1 == 1) {
                want.iter_mut().zip(&alone[reader]).for_each(|(sum, x)| *sum += x);
            }
            close(&format!("readers {readers:b} of {grad}/{rows} rows"), &run(readers), &want, 1e-14);
        }
    }
}

#[test]
fn ops_without_gradient_record_nothing() {
    let device = Device::cpu(Some(1)).unwrap();
    for case in table() {
        let mut inputs = case.inputs();
        inputs.iter_mut().for_each(|input| input.grad = 0);
        if case.trained || matches!(case.op, Op::Embedding { .. }) {
            continue;
        }
        let Operands { mut tape, vars, .. } = operands(&device, DType::F32, &inputs);
        let y = case.apply(&mut tape, &device, DType::F32, &vars);
        assert!(!y.is_tracked(), "{case:?}");
        assert_eq!(device.memory().current(Kind::SavedActivations), 0, "{case:?}");
    }
}

#[test]
fn what_an_op_saves_is_freed_by_the_backward_pass() {
    let device = Device::cpu(Some(1)).unwrap();
    for case in table() {
        let inputs = case.inputs();
        for which in 0..inputs.len() {
            let before = device.memory().current_total();
            drop(gradients(&device, DType::F32, &case, &inputs[..]));
            assert_eq!(device.memory().current_total(), before, "{case:?} input {which}");
        }
    }
}

#[test]
fn scores_beyond_the_range_of_exp_stay_finite() {
    let device = Device::cpu(Some(2)).unwrap();
    // exp overflows at 88 in f32, and at 709 in the naive f64.
    let large = |case: &Case| match case.op {
        Op::Attention { dim: 6, .. } => Some(12.0),
        Op::CrossEntropy { ref head, .. } if head.outputs == 9001 => Some(50.0),
        _ => None,
    };
    let mut found = 0;
    for case in table() {
        let Some(factor) = large(&case) else { continue };
        let mut inputs = case.inputs();
        inputs
            .iter_mut()
            .take(2)
            .for_each(|input| input.values.iter_mut().for_each(|x| *x = (factor * *x) as f32 as f64));
        let values: Vec<Vec<f64>> = inputs.iter().map(|input| input.values.clone()).collect();
        let want = naive::forward(&case, &values);
        for (dtype, tolerance) in [(DType::F64, 1e-11), (DType::F32, 2e-4)] {
            let Operands { mut tape, vars, .. } = operands(&device, dtype, &inputs);
            let got = case.apply(&mut tape, &device, dtype, &vars).into_tensor();
            if want.is_empty() {
                continue;
            }
            close_absolute(
                &format!("{case:?} {dtype}"),
                &got.to_f64_vec().unwrap(),
                &want,
                tolerance * largest(&want).max(1.0),
            );
            for gradient in gradients(&device, dtype, &case, &inputs) {
                assert!(gradient.iter().all(|x| x.is_finite()), "{case:?} {dtype}");
            }
            found += 1;
        }
    }
    assert!(found >= 20, "{found} cases");
}

fn largest(values: &[f64]) -> f64 {
    values.iter().fold(0f64, |largest, x| largest.max(x.abs()))
}
