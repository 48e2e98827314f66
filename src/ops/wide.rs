//! f32 tensors as f64 and back, for narrow models: their sums are taken in f64 and rounded once. Such a model has no
//! speed to lose, and the few numbers of its gradient leave rounding errors little to average out with.

use crate::device::Kind;
use crate::dtype::{DType, Element};
use crate::tensor::{Tensor, with_element};

/// `x` in f64, on the CPU.
pub(crate) fn widened(x: &Tensor) -> Tensor {
    let mut wide = Tensor::scratch(x.device(), x.rows(), x.cols(), DType::F64, Kind::Workspace);
    with_element!(x.dtype(), E => {
        let pairs = wide.make_mut::<f64>().iter_mut().zip(x.as_slice::<E>());
        pairs.for_each(|(wide, &x)| *wide = Element::to_f64(x));
    });
    wide
}

/// Writes `wide` to `y`, rounded to its type.
pub(crate) fn round_to(y: &mut Tensor, wide: &Tensor) {
    with_element!(y.dtype(), E => {
        let pairs = y.make_mut::<E>().iter_mut().zip(wide.as_slice::<f64>());
        pairs.for_each(|(y, &wide)| *y = E::from_f64(wide));
    });
}
