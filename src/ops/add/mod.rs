//! `add`: `y = a + b`, the residual connection.
//!
//! * saves: nothing
//! * backward: `da = dy`, `db = dy`, each for its own gradient rows

#[allow(unsafe_code, reason = "kernel launches")]
pub(crate) mod cuda;

use crate::device::Device;
use crate::error::{Error, Result};
use crate::tape::{Tape, Var};

/// The sum of two tensors of one shape. The memory of `b` is used for the result if nothing else holds it.
///
/// # Errors
/// [`Error::Op`] if the shapes differ.
pub fn add(tape: &mut Tape, a: &Var, b: Var) -> Result<Var> {
    let (left, right) = (a.node(), b.node());
    let mut sum = b.into_tensor();
    if (sum.rows(), sum.cols()) != (a.tensor().rows(), a.tensor().cols()) {
        return Err(Error::op("add", a.tensor().describe(), sum.describe()));
    }
    match sum.device().clone() {
        // Into fresh memory at once, rather than into a copy.
        Device::Cuda(cuda) if !sum.is_unique() => sum = cuda::forward(&cuda, a.tensor(), &sum)?,
        _ => sum.add_assign(a.tensor())?,
    }
    Ok(tape.record_sum(sum, left, right))
}
