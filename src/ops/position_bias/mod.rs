//! `position_bias`: `y[h, j] = w[bucket[j], h]`, the table of T5's attention biases by distance, from one of a weight for
//! each bucket of distances and head (Raffel et al. 2020 §2.1).
//!
//! * saves: nothing but the buckets
//! * backward: `dw[b, h] = Σ dy[h, j]` over the `j` with `bucket[j] = b`, in one fixed order

#[allow(unsafe_code, reason = "kernel launches")]
mod cuda;

use crate::device::{Device, Kind};
use crate::dtype::{DType, Element};
use crate::error::{Error, Result};
use crate::indices::Indices;
use crate::tape::{Accumulate, Tape, Var};
use crate::tensor::{Tensor, with_element};
use crate::weights::{Matrix, Orientation};

/// The table `[heads, buckets.len()]` of the accumulator's type for `dtype`, from `weight` `[buckets, heads]`.
///
/// # Errors
/// [`Error::Op`] for a bucket that the weight does not have.
pub fn position_bias(
    tape: &mut Tape,
    weight: &Matrix,
    buckets: &[usize],
    device: &Device,
    dtype: DType,
) -> Result<Var> {
    let (count, heads) = (weight.out_features(), weight.in_features());
    if weight.orientation() != Orientation::RowPerOutput {
        return Err(Error::op("position_bias", "a row for each bucket", "a column"));
    }
    if let Some(bucket) = buckets.iter().find(|&&bucket| bucket >= count) {
        return Err(Error::op("position_bias", format!("buckets below {count}"), bucket.to_string()));
    }
    let Some(parameter) = weight.parameter() else {
        let mut rows = vec![0f64; count * heads];
        rows.chunks_exact_mut(heads).enumerate().for_each(|(bucket, row)| weight.widen_row(bucket, row));
        let values = (0..heads).flat_map(|head| buckets.iter().map(move |bucket| (bucket, head)));
        let values: Vec<f64> = values.map(|(bucket, head)| rows[bucket * heads + head]).collect();
        let table = Tensor::from_f64(device, heads, buckets.len(), dtype.accumulator(), &values, Kind::Weights)?;
        return Ok(Var::constant(table));
    };
    let value = parameter.value();
    let mut table = Tensor::scratch(device, heads, buckets.len(), value.dtype().accumulator(), Kind::Workspace);
    let buckets = Indices::from(buckets);
    match device {
        Device::Cpu(_) => with_element!(value.dtype(), E => {
            let (from, to) = (value.as_slice::<E>(), table.make_mut::<E>());
            for (head, row) in to.chunks_exact_mut(buckets.len().max(1)).enumerate() {
                row.iter_mut().zip(buckets.iter()).for_each(|(y, bucket)| *y = from[bucket * heads + head]);
            }
        }),
        Device::Cuda(cuda) => cuda::forward(cuda, &value, &buckets, &mut table)?,
    }
    let node = tape.parameter(Some(parameter.id()), count);
    Ok(tape.record(table, heads, move |dy, gradients| {
        // In bf16 the table is wider than the weight.
        gradients.accumulate(node, heads, &value, |dw, accumulate| {
            match dy.device() {
                Device::Cpu(_) => with_element!(dy.dtype(), E => gather::<E>(&dy, &buckets, dw, accumulate)),
                Device::Cuda(cuda) => cuda::backward(cuda, &dy, &buckets, dw, accumulate)?,
            }
            Ok(())
        })
    }))
}

fn gather<E: Element>(dy: &Tensor, buckets: &[usize], dw: &mut Tensor, accumulate: Accumulate) {
    let heads = dy.rows();
    let dw = dw.make_mut::<E>();
    if accumulate == Accumulate::Replace {
        dw.fill(E::ZERO);
    }
    for head in 0..heads {
        for (&dy, bucket) in dy.row::<E>(head).iter().zip(buckets) {
            dw[bucket * heads + head] += dy;
        }
    }
}
