//! A product with a stored matrix is the product with its widened numbers, bit for bit, whatever the format.

mod cases;
mod common;

use cases::{Random, Weight, tensor};
use softprompt::ops;
use softprompt::tape::Tape;
use softprompt::weights::{Format, Matrix, Orientation, StoredTensor};
use softprompt::{DType, Device, Tensor};
use std::sync::Arc;

/// Output and input gradient, as bits.
fn product(device: &Device, dtype: DType, x: &Tensor, matrix: &Arc<Matrix>) -> (Vec<u64>, Vec<u64>) {
    let mut tape = Tape::new();
    let leaf = tape.leaf(x.clone());
    let y = ops::linear(&mut tape, &leaf, matrix, None).unwrap();
    // A second product, so that the gradient that comes back is no constant.
    let mixing = Random::new(9).numbers(matrix.out_features() * 3);
    let mixing = StoredTensor::from_values("m", &[matrix.out_features(), 3], mixing).unwrap();
    let mixing = Arc::new(Matrix::new(mixing, Orientation::RowPerInput).unwrap());
    let mixed = ops::linear(&mut tape, &y, &mixing, None).unwrap();
    let bits = |tensor: &Tensor| tensor.to_f64_vec().unwrap().into_iter().map(f64::to_bits).collect();
    assert_eq!((y.tensor().dtype(), y.tensor().device().threads()), (dtype, device.threads()));
    (bits(y.tensor()), bits(&tape.backward(&mixed, &leaf).unwrap()))
}

#[test]
fn stored_and_widened_matrices_have_the_same_products() {
    let device = Device::cpu(Some(2)).unwrap();
    for format in Format::ALL {
        let block = format.block_len().max(32);
        for orientation in [Orientation::RowPerOutput, Orientation::RowPerInput] {
            for part in [None, Some(block..4 * block)] {
                let weight = Weight { outputs: 5 * block, inputs: 4 * block, orientation, format, part };
                for dtype in [DType::F32, DType::F64] {
                    let x = tensor(&device, dtype, 11, weight.inputs, &Random::new(3).numbers(11 * weight.inputs));
                    let stored = weight.matrix(1, false);
                    let mut widened = Matrix::clone(&stored);
                    widened.widen(&device, dtype);
                    assert!(widened.is_direct(dtype));
                    let (a, b) =
                        (product(&device, dtype, &x, &stored), product(&device, dtype, &x, &Arc::new(widened)));
                    assert!(a.0 == b.0, "{weight:?} {dtype}: outputs differ");
                    assert!(a.1 == b.1, "{weight:?} {dtype}: gradients differ");
                }
            }
        }
    }
}
