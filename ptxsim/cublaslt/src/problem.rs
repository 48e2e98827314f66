//! A product as its descriptors have it, once they were found to fit together.
//!
//! D = epilogue(alpha op(A) op(B) + beta C + bias), with op(A) of m × k, op(B) of k × n, C and D of m × n elements.

use crate::descriptor::{Descriptor, Layout, Type};
use crate::status::{Result, Status, refuse};
use std::hash::{DefaultHasher, Hash, Hasher};

const COMPUTE_32F: i32 = 68;
const COMPUTE_32F_PEDANTIC: i32 = 69;
const COMPUTE_32F_FAST_TF32: i32 = 77;
const SCALE_32F: i32 = 0;

/// What is applied to each element of the result.
#[derive(Clone, Copy, Debug, PartialEq, Hash)]
pub(crate) enum Activation {
    None,
    Relu,
    /// The approximation with tanh, which is the one the library has.
    Gelu,
}

/// A batch of matrices in memory.
#[derive(Clone, Copy, Debug, PartialEq, Hash)]
pub(crate) struct Operand {
    pub(crate) kind: Type,
    /// Elements from a row of the (transposed) matrix to the next, and from a column to the next.
    pub(crate) strides: (usize, usize),
    pub(crate) batch_stride: usize,
    /// Runs of neighbouring elements: how many, how long, and how far from one to the next.
    runs: (usize, usize, usize),
    batches: usize,
}

/// A bias: one value for each row of D.
#[derive(Clone, Copy, Debug, PartialEq, Hash)]
pub(crate) struct Bias {
    pub(crate) kind: Type,
    pub(crate) batch_stride: usize,
}

/// A product.
#[derive(Clone, Copy, Debug, PartialEq, Hash)]
pub(crate) struct Problem {
    pub(crate) m: usize,
    pub(crate) n: usize,
    pub(crate) k: usize,
    pub(crate) batches: usize,
    pub(crate) a: Operand,
    pub(crate) b: Operand,
    pub(crate) c: Operand,
    pub(crate) d: Operand,
    pub(crate) bias: Option<Bias>,
    pub(crate) activation: Activation,
    /// Elements of A and B lose the last 13 bits of their mantissa.
    pub(crate) tf32: bool,
}

fn invalid<T>(why: String) -> Result<T> {
    refuse(Status::INVALID_VALUE, why)
}

fn unsupported<T>(why: String) -> Result<T> {
    refuse(Status::NOT_SUPPORTED, why)
}

impl Operand {
    /// Checks a layout, and gives the matrix that the product sees with its rows and columns.
    fn new(name: char, layout: &Layout, transpose: i32) -> Result<(Operand, usize, usize)> {
        let kind = Type::from_code(layout.kind)?;
        let Layout { rows, cols, leading, batches, batch_stride, row_major, .. } = *layout;
        if rows == 0 || cols == 0 {
            return invalid(format!("{name} is {rows} × {cols}; expected at least one element"));
        }
        let (short, long, what) = if row_major { (cols, rows, "columns") } else { (rows, cols, "rows") };
        if leading < 0 || (leading as u64) < short {
            return invalid(format!("{name} has leading dimension {leading}; expected at least its {short} {what}"));
        }
        if batches < 1 || batch_stride < 0 {
            return invalid(format!("{name} has {batches} matrices in a batch, {batch_stride} elements apart"));
        }
        let (leading, rows, cols) = (leading as usize, rows as usize, cols as usize);
        let strides = if row_major { (leading, 1) } else { (1, leading) };
        let operand = Operand {
            kind,
            strides,
            batch_stride: batch_stride as usize,
            runs: (long as usize, short as usize, leading),
            batches: batches as usize,
        };
        match transpose {
            0 => Ok((operand, rows, cols)),
            // The conjugate transpose of real numbers is the transpose.
            1 | 2 => Ok((Operand { strides: (strides.1, strides.0), ..operand }, cols, rows)),
            other => invalid(format!("{name} has operation {other}; expected none (0) or transpose (1 or 2)")),
        }
    }

    /// The bytes of the batch, as address and length of each run; neighbouring runs are one.
    pub(crate) fn runs(&self, address: u64) -> impl Iterator<Item = (u64, usize)> + '_ {
        let (count, length, step) = self.runs;
        let (count, length) = if step == length { (1, count * length) } else { (count, length) };
        let size = self.kind.size();
        (0..self.batches).flat_map(move |batch| {
            (0..count).map(move |run| {
                let offset = batch * self.batch_stride + run * step;
                (address + (offset * size) as u64, length * size)
            })
        })
    }

    /// Whether runs of elements overlap: of this operand at `address`, and of `other` at `place`, or among themselves.
    pub(crate) fn overlaps(&self, address: u64, other: &Operand, place: u64) -> bool {
        let mut runs: Vec<(u64, usize, bool)> = self.runs(address).map(|(start, bytes)| (start, bytes, true)).collect();
        runs.extend(other.runs(place).map(|(start, bytes)| (start, bytes, false)));
        runs.sort_unstable();
        // The farthest end so far, of each.
        let mut ends = [0, 0];
        runs.into_iter().any(|(start, bytes, own)| {
            let overlaps = start < ends[!own as usize];
            let end = &mut ends[own as usize];
            *end = start.max(*end).max(start + bytes as u64);
            overlaps
        })
    }

    /// Whether matrices of the batch overlap, as those that are written must not.
    fn overlaps_itself(&self) -> bool {
        let mut runs: Vec<(u64, usize)> = self.runs(0).collect();
        runs.sort_unstable();
        runs.windows(2).any(|pair| pair[0].0 + pair[0].1 as u64 > pair[1].0)
    }
}

impl Problem {
    /// Checks descriptors against each other, by the library's rules.
    pub(crate) fn new(descriptor: &Descriptor, a: &Layout, b: &Layout, c: &Layout, d: &Layout) -> Result<Problem> {
        let batches = [a, b, c, d].map(|layout| layout.batches);
        if batches.iter().any(|count| *count != batches[0]) {
            return invalid(format!("batches of {batches:?} matrices for A, B, C and D; expected as many of each"));
        }
        if descriptor.transpose_c != 0 {
            return unsupported(format!("operation {} on C; expected none (0)", descriptor.transpose_c));
        }
        let (a, m, k) = Operand::new('A', a, descriptor.transpose_a)?;
        let (b, b_rows, n) = Operand::new('B', b, descriptor.transpose_b)?;
        let (c, c_rows, c_cols) = Operand::new('C', c, 0)?;
        let (d_operand, d_rows, d_cols) = Operand::new('D', d, 0)?;
        if b_rows != k || (c_rows, c_cols) != (m, n) || (d_rows, d_cols) != (m, n) {
            return invalid(format!(
                "op(A) is {m} × {k}, op(B) {b_rows} × {n}, C {c_rows} × {c_cols}, D {d_rows} × {d_cols}; expected m × k, k × n, \
                 and twice m × n"
            ));
        }
        if d_operand.overlaps_itself() {
            return invalid("the matrices of D's batch overlap each other".into());
        }
        let tf32 = match descriptor.compute {
            COMPUTE_32F | COMPUTE_32F_PEDANTIC => false,
            COMPUTE_32F_FAST_TF32 => a.kind == Type::F32,
            other => return unsupported(format!("compute type {other}; expected 32F (68, 69) or 32F_FAST_TF32 (77)")),
        };
        if descriptor.scale != SCALE_32F || descriptor.pointer_mode != 0 {
            let (scale, mode) = (descriptor.scale, descriptor.pointer_mode);
            return unsupported(format!("scale type {scale}, pointer mode {mode}; expected f32 (0) and host (0)"));
        }
        let kinds = (a.kind, b.kind, c.kind, d_operand.kind);
        match kinds {
            (Type::F32, Type::F32, Type::F32, Type::F32) => {}
            (Type::Bf16, Type::Bf16, Type::Bf16 | Type::F32, out) if out == c.kind => {}
            (Type::F16, Type::F16, Type::F16 | Type::F32, out) if out == c.kind => {}
            _ => {
                return unsupported(format!(
                    "element types {kinds:?} of A, B, C and D; expected f32, or bf16 or f16 with C and D alike, or in f32"
                ));
            }
        }
        let (activation, biased) = match descriptor.epilogue {
            1 => (Activation::None, false),
            2 => (Activation::Relu, false),
            32 => (Activation::Gelu, false),
            4 => (Activation::None, true),
            6 => (Activation::Relu, true),
            36 => (Activation::Gelu, true),
            other => {
                return unsupported(format!(
                    "epilogue {other}; expected DEFAULT (1), RELU (2), GELU (32), BIAS (4), RELU_BIAS (6), GELU_BIAS (36)"
                ));
            }
        };
        if (biased || activation != Activation::None) && d.row_major {
            // The library turns a row-major product into a column-major one; whether its bias goes along is not said.
            return unsupported("an epilogue with D in row order; give D in column order, and swap A and B".into());
        }
        let bias = if biased { Some(Bias::new(descriptor, d_operand.kind, batches[0])?) } else { None };
        Ok(Problem { m, n, k, batches: batches[0] as usize, a, b, c, d: d_operand, bias, activation, tf32 })
    }

    /// A number that differs for problems that differ: an algorithm is good for the problem it was found for.
    pub(crate) fn fingerprint(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.hash(&mut hasher);
        hasher.finish()
    }
}

impl Bias {
    fn new(descriptor: &Descriptor, out: Type, batches: i32) -> Result<Bias> {
        let kind = if descriptor.bias_type == -1 { out } else { Type::from_code(descriptor.bias_type)? };
        if kind != out {
            return unsupported(format!("a bias in {kind:?} with D in {out:?}; expected the same type"));
        }
        if descriptor.bias_batch_stride < 0 {
            return invalid(format!("biases of {batches} matrices {} elements apart", descriptor.bias_batch_stride));
        }
        Ok(Bias { kind, batch_stride: descriptor.bias_batch_stride as usize })
    }
}
