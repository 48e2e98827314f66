//! Every op at the shapes of a 135M model's layer, forward and backward: `cargo bench --bench ops`.
//!
//! `SOFTPROMPT_BENCH_DEVICE` is `cpu`, `cuda` or `cuda:N`, `SOFTPROMPT_BENCH_DTYPE` the type to compute in. A GPU is waited
//! for in every round, so what takes some microseconds there is the launch.
//!
//! P = 100, 32 examples of 31 rows: 1092 rows of width 576, 9 query heads on 3 key heads of 64, 1536 inside the MLP.

use divan::Bencher;
use softprompt::device::Kind;
use softprompt::indices::Indices;
use softprompt::layout::{Layout, Sequence};
use softprompt::ops::{self, Activation, Pairing, attention::Heads, rope::Rotation};
use softprompt::tape::{Tape, Var};
use softprompt::weights::{Format, Matrix, Orientation, StoredTensor};
use softprompt::{DType, Device, Tensor};
use std::sync::Arc;

const ROWS: usize = 1092;
const WIDTH: usize = 576;
const INNER: usize = 1536;
const HEADS: Heads = Heads { queries: 9, keys: 3, dim: 64, scale: 0.125 };

fn main() {
    divan::main();
}

fn setting(name: &str, default: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| default.to_string())
}

fn device() -> Device {
    Device::named(&setting("SOFTPROMPT_BENCH_DEVICE", "cpu"), None).expect("a device")
}

fn dtype() -> DType {
    DType::named(&setting("SOFTPROMPT_BENCH_DTYPE", "f32")).expect("a type")
}

fn tensor(device: &Device, rows: usize, cols: usize) -> Tensor {
    tensor_of(device, rows, cols, dtype())
}

fn tensor_of(device: &Device, rows: usize, cols: usize, dtype: DType) -> Tensor {
    let values: Vec<f64> = (0..rows * cols).map(|i| ((i * 7919 % 2003) as f64 - 1001.0) / 1001.0).collect();
    Tensor::from_f64(device, rows, cols, dtype, &values, Kind::Workspace).expect("a tensor")
}

fn matrix(outputs: usize, inputs: usize) -> Arc<Matrix> {
    let values: Vec<f32> = (0..outputs * inputs).map(|i| ((i * 31 % 997) as f32 - 498.0) / 9980.0).collect();
    let stored = StoredTensor::from_values("w", &[outputs, inputs], values).expect("a matrix");
    Arc::new(Matrix::new(stored, Orientation::RowPerOutput).expect("a matrix"))
}

fn layout() -> Layout {
    let ids = vec![0u32; 32];
    let one = Sequence::example(0, &ids, 31);
    Layout::causal(&[100], &[one; 32]).expect("a layout")
}

/// Times `forward`, and `forward` with `backward`, of an op on inputs of the given widths.
fn both(bencher: Bencher<'_, '_>, backward: bool, widths: &[usize], op: impl Fn(&mut Tape, &[Var]) -> Var + Sync) {
    let device = device();
    let inputs: Vec<Tensor> = widths.iter().map(|&width| tensor(&device, ROWS, width)).collect();
    bencher.bench_local(|| {
        device
            .run(|| {
                let mut tape = Tape::new();
                let make = |tape: &mut Tape, tensor: &Tensor| match backward {
                    true => tape.leaf(tensor.clone()),
                    false => Var::constant(tensor.clone()),
                };
                let vars: Vec<Var> = inputs.iter().map(|tensor| make(&mut tape, tensor)).collect();
                let output = op(&mut tape, &vars);
                if backward {
                    tape.backward(&output, &vars[0])?;
                }
                match &device {
                    Device::Cpu(_) => Ok(()),
                    Device::Cuda(cuda) => cuda.synchronize(),
                }
            })
            .expect("the op");
    });
}

#[divan::bench(args = [false, true])]
fn linear_up(bencher: Bencher<'_, '_>, backward: bool) {
    let weight = matrix(INNER, WIDTH);
    both(bencher, backward, &[WIDTH], |tape, x| ops::linear(tape, &x[0], &weight, None).expect("linear"));
}

#[divan::bench(args = [false, true])]
fn linear_up_q8_0(bencher: Bencher<'_, '_>, backward: bool) {
    let bytes = (0..INNER * WIDTH / 32).flat_map(|block| {
        let scale = half::f16::from_f32(0.001).to_le_bytes();
        scale.into_iter().chain((0..32).map(move |i| (block * 31 + i * 7) as u8))
    });
    let stored = StoredTensor::from_bytes("w", &[INNER, WIDTH], Format::Q8_0, bytes.collect()).expect("blocks");
    let weight = Arc::new(Matrix::new(stored, Orientation::RowPerOutput).expect("a matrix"));
    both(bencher, backward, &[WIDTH], |tape, x| ops::linear(tape, &x[0], &weight, None).expect("linear"));
}

#[divan::bench(args = [false, true])]
fn attention(bencher: Bencher<'_, '_>, backward: bool) {
    let segments = Arc::new(layout().all);
    both(bencher, backward, &[WIDTH, 192, 192], |tape, x| {
        ops::attention(tape, &x[0], &x[1], &x[2], HEADS, &segments, None).expect("attention")
    });
}

#[divan::bench(args = [false, true])]
fn rms_norm(bencher: Bencher<'_, '_>, backward: bool) {
    let weight = Var::constant(tensor(&device(), 1, WIDTH));
    both(bencher, backward, &[WIDTH], |tape, x| ops::rms_norm(tape, &x[0], &weight, 1e-5).expect("rms_norm"));
}

#[divan::bench(args = [false, true])]
fn layer_norm(bencher: Bencher<'_, '_>, backward: bool) {
    let (weight, bias) = (Var::constant(tensor(&device(), 1, WIDTH)), Var::constant(tensor(&device(), 1, WIDTH)));
    both(bencher, backward, &[WIDTH], |tape, x| {
        ops::layer_norm(tape, &x[0], &weight, &bias, 1e-5).expect("layer_norm")
    });
}

#[divan::bench(args = [false, true])]
fn rope(bencher: Bencher<'_, '_>, backward: bool) {
    let device = device();
    let table = |rows| tensor_of(&device, rows, HEADS.dim / 2, dtype().accumulator());
    let rotation = Arc::new(Rotation { pairing: Pairing::Halves, cos: table(256), sin: table(256) });
    let positions = Indices::from(layout().positions);
    both(bencher, backward, &[WIDTH], |tape, x| ops::rope(tape, x[0].clone(), &rotation, &positions).expect("rope"));
}

#[divan::bench(args = [false, true])]
fn gated_silu(bencher: Bencher<'_, '_>, backward: bool) {
    both(bencher, backward, &[INNER, INNER], |tape, x| {
        ops::gated(tape, &x[0], &x[1], Activation::Silu).expect("gated")
    });
}

#[divan::bench(args = [false, true])]
fn activation_gelu_new(bencher: Bencher<'_, '_>, backward: bool) {
    both(bencher, backward, &[INNER], |tape, x| {
        ops::activation(tape, &x[0], Activation::GeluTanh).expect("activation")
    });
}

#[divan::bench(args = [false, true])]
fn add(bencher: Bencher<'_, '_>, backward: bool) {
    both(bencher, backward, &[WIDTH, WIDTH], |tape, x| ops::add(tape, &x[0], x[1].clone()).expect("add"));
}

#[divan::bench(args = [false, true])]
fn cross_entropy_32_rows(bencher: Bencher<'_, '_>, backward: bool) {
    let head = matrix(49_152, WIDTH);
    let labels: Vec<u32> = (0..32).map(|i| i * 1500).collect();
    let index: Indices = (0..32).collect();
    both(bencher, backward, &[WIDTH], |tape, x| {
        let rows = ops::rows(tape, &x[0], &index).expect("rows");
        ops::cross_entropy(tape, &rows, &head, &labels, &[1.0 / 32.0; 32]).expect("loss").loss
    });
}
