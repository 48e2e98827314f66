//! Running a case: its operands on a tape, and the gradient of a functional of its output.

use super::{Case, Input, Random, tensor};
use softprompt::device::Kind;
use softprompt::ops;
use softprompt::tape::{Tape, Var};
use softprompt::weights::{Matrix, Orientation, StoredTensor};
use softprompt::{DType, Device, Tensor};

/// Inputs of a case on a tape, with the leaves behind those that carry gradient.
pub struct Operands {
    pub tape: Tape,
    pub leaves: Vec<Option<Var>>,
    pub vars: Vec<Var>,
}

/// A variable of which only the first rows carry gradient: they are a prompt, the rest rows of an embedding table.
pub fn variable(tape: &mut Tape, device: &Device, dtype: DType, input: &Input) -> (Option<Var>, Var) {
    let Input { rows, cols, grad, values, parameter, is_wide } = input;
    let dtype = if *is_wide { dtype.accumulator() } else { dtype };
    if parameter.is_some() && *grad > 0 {
        let var = tape.parameter_var(*parameter, tensor(device, dtype, *rows, *cols, values));
        return (Some(var.clone()), var);
    }
    if *grad == 0 {
        return (None, Var::constant(tensor(device, dtype, *rows, *cols, values)));
    }
    let leaf = tape.leaf(tensor(device, dtype, *grad, *cols, &values[..grad * cols]));
    if grad == rows {
        return (Some(leaf.clone()), leaf);
    }
    let rest = StoredTensor::from_values("rest", &[rows - grad, *cols], values[grad * cols..].to_vec()).unwrap();
    let rest = Matrix::new(rest, Orientation::RowPerOutput).unwrap();
    let ids: Vec<u32> = (0..(rows - grad) as u32).collect();
    let var = ops::embedding(tape, &leaf, &rest, &ids, None).unwrap();
    assert_eq!((var.grad_rows(), var.tensor().rows()), (*grad, *rows));
    (Some(leaf), var)
}

pub fn operands(device: &Device, dtype: DType, inputs: &[Input]) -> Operands {
    let mut tape = Tape::new();
    let (leaves, vars) = inputs.iter().map(|input| variable(&mut tape, device, dtype, input)).unzip();
    Operands { tape, leaves, vars }
}

/// `Σ cᵢ yᵢ`, as an op of the test's own. Every row of `y` counts in the value, also those that are said to carry no
/// gradient.
pub fn functional(tape: &mut Tape, y: &Var, c: &[f64]) -> Var {
    let (node, value) = (y.node(), y.tensor());
    let sum: f64 = value.to_f64_vec().unwrap().iter().zip(c).map(|(y, c)| y * c).sum();
    let (device, dtype, cols) = (value.device().clone(), value.dtype(), value.cols());
    let output = Tensor::from_f64(&device, 1, 1, dtype, &[sum], Kind::Workspace).unwrap();
    if !y.is_tracked() {
        return Var::constant(output);
    }
    let c = tensor(&device, dtype, node.grad_rows(), cols, &c[..node.grad_rows() * cols]);
    tape.record(output, 1, move |_, gradients| gradients.add(node, c))
}

pub fn projection(case: &Case, length: usize) -> Vec<f64> {
    case.rounded(Random::new(case.seed ^ 99).numbers(length))
}

/// The gradient of the functional by each input's gradient rows.
pub fn gradients(device: &Device, dtype: DType, case: &Case, inputs: &[Input]) -> Vec<Vec<f64>> {
    (0..inputs.len())
        .map(|which| {
            let Operands { mut tape, leaves, vars } = operands(device, dtype, inputs);
            let Some(leaf) = &leaves[which] else { return Vec::new() };
            let y = case.apply(&mut tape, device, dtype, &vars);
            let sum = functional(&mut tape, &y, &projection(case, y.tensor().len()));
            if !sum.is_tracked() {
                return vec![0.0; leaf.tensor().len()];
            }
            let gradient = tape.backward(&sum, leaf).unwrap();
            assert_eq!((gradient.rows(), gradient.cols()), (inputs[which].grad, inputs[which].cols), "{case:?}");
            gradient.to_f64_vec().unwrap()
        })
        .collect()
}
