//! Descriptors: `cublasLtMatrixLayout*`, `cublasLtMatmulDesc*`, `cublasLtMatmulPreference*`.
//!
//! They hold what they are given; whether it makes sense together is checked where a product is asked for, as in the
//! library.

use crate::abi::{Out, Table, Value, entry_points};
use crate::status::{Result, Status, refuse};
use std::ffi::c_int;

/// `cudaDataType_t`: the element types that the stand-in knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Type {
    F32,
    F16,
    Bf16,
}

impl Type {
    pub(crate) fn from_code(code: c_int) -> Result<Type> {
        match code {
            0 => Ok(Type::F32),
            2 => Ok(Type::F16),
            14 => Ok(Type::Bf16),
            _ => refuse(Status::NOT_SUPPORTED, format!("element type {code}; expected f32 (0), f16 (2) or bf16 (14)")),
        }
    }

    pub(crate) fn size(self) -> usize {
        match self {
            Type::F32 => 4,
            Type::F16 | Type::Bf16 => 2,
        }
    }
}

/// `cublasLtMatrixLayout_t`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Layout {
    pub(crate) kind: c_int,
    pub(crate) rows: u64,
    pub(crate) cols: u64,
    /// Elements from one column to the next; from one row to the next where `row_major`.
    pub(crate) leading: i64,
    pub(crate) row_major: bool,
    pub(crate) batches: i32,
    /// Elements from one matrix of a batch to the next.
    pub(crate) batch_stride: i64,
}

/// `cublasLtMatmulDesc_t`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Descriptor {
    pub(crate) compute: c_int,
    pub(crate) scale: c_int,
    pub(crate) pointer_mode: c_int,
    pub(crate) transpose_a: c_int,
    pub(crate) transpose_b: c_int,
    pub(crate) transpose_c: c_int,
    pub(crate) epilogue: c_int,
    pub(crate) bias: u64,
    pub(crate) bias_batch_stride: i64,
    /// A `cudaDataType_t`, or -1: that of D.
    pub(crate) bias_type: c_int,
}

/// `cublasLtMatmulPreference_t`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Preference {
    pub(crate) workspace: u64,
    /// What the addresses of A, B, C and D are multiples of.
    pub(crate) alignment: [u32; 4],
}

pub(crate) static LAYOUTS: Table<Layout> = Table::new(0xb1a5_0001_0000);
pub(crate) static DESCRIPTORS: Table<Descriptor> = Table::new(0xb1a5_1001_0000);
pub(crate) static PREFERENCES: Table<Preference> = Table::new(0xb1a5_2001_0000);

fn unsupported<T>(object: &str, attribute: c_int) -> Result<T> {
    refuse(Status::NOT_SUPPORTED, format!("attribute {attribute} of a {object} is not supported"))
}

impl Layout {
    fn set(&mut self, attribute: c_int, value: Value) -> Result {
        match attribute {
            0 => self.kind = value.int()?,
            1 => {
                self.row_major = match value.int()? {
                    0 => false,
                    1 => true,
                    order => {
                        return refuse(Status::NOT_SUPPORTED, format!("order {order}; expected column (0) or row (1)"));
                    }
                }
            }
            2 => self.rows = value.unsigned_long()?,
            3 => self.cols = value.unsigned_long()?,
            4 => self.leading = value.long()?,
            5 => self.batches = value.int()?,
            6 => self.batch_stride = value.long()?,
            _ => return unsupported("matrix layout", attribute),
        }
        Ok(())
    }
}

impl Descriptor {
    fn set(&mut self, attribute: c_int, value: Value) -> Result {
        match attribute {
            1 => self.scale = value.int()?,
            2 => self.pointer_mode = value.int()?,
            3 => self.transpose_a = value.int()?,
            4 => self.transpose_b = value.int()?,
            5 => self.transpose_c = value.int()?,
            7 => self.epilogue = value.int()?,
            8 => self.bias = value.unsigned_long()?,
            10 => self.bias_batch_stride = value.long()?,
            26 => self.bias_type = value.int()?,
            // How many multiprocessors to use: no matter here.
            15 => drop(value.int()?),
            _ => return unsupported("matmul descriptor", attribute),
        }
        Ok(())
    }
}

impl Preference {
    fn set(&mut self, attribute: c_int, value: Value) -> Result {
        match attribute {
            1 => self.workspace = value.unsigned_long()?,
            5..=8 => {
                let alignment = value.int()? as u32;
                if !alignment.is_power_of_two() {
                    return refuse(Status::INVALID_VALUE, format!("alignment {alignment}; expected a power of two"));
                }
                self.alignment[attribute as usize - 5] = alignment;
            }
            // Which algorithms to choose from (mode, reduction schemes, waves, implementations): there is one.
            0 | 3 | 9 => drop(value.int()?),
            12 => drop(value.unsigned_long()?),
            _ => return unsupported("matmul preference", attribute),
        }
        Ok(())
    }
}

entry_points! {
    /// A column-major matrix, until attributes say otherwise.
    fn cublasLtMatrixLayoutCreate(layout: Out<usize>, kind: c_int, rows: u64, cols: u64, leading: i64) {
        layout.set(LAYOUTS.insert(Layout { kind, rows, cols, leading, row_major: false, batches: 1, batch_stride: 0 }))
    }

    /// Sets an attribute of a layout.
    fn cublasLtMatrixLayoutSetAttribute(layout: usize, attribute: c_int, value: *const u8, bytes: usize) {
        // SAFETY: the caller promises `bytes` readable bytes.
        let value = unsafe { Value::new(value, bytes) }?;
        LAYOUTS.update(layout, |layout| layout.set(attribute, value))
    }

    /// Destroys a layout.
    fn cublasLtMatrixLayoutDestroy(layout: usize) {
        LAYOUTS.remove(layout)
    }

    /// A product of untransposed matrices with no epilogue, until attributes say otherwise.
    fn cublasLtMatmulDescCreate(descriptor: Out<usize>, compute: c_int, scale: c_int) {
        descriptor.set(DESCRIPTORS.insert(Descriptor {
            compute,
            scale,
            pointer_mode: 0,
            transpose_a: 0,
            transpose_b: 0,
            transpose_c: 0,
            epilogue: 1,
            bias: 0,
            bias_batch_stride: 0,
            bias_type: -1,
        }))
    }

    /// Sets an attribute of a descriptor.
    fn cublasLtMatmulDescSetAttribute(descriptor: usize, attribute: c_int, value: *const u8, bytes: usize) {
        // SAFETY: the caller promises `bytes` readable bytes.
        let value = unsafe { Value::new(value, bytes) }?;
        DESCRIPTORS.update(descriptor, |descriptor| descriptor.set(attribute, value))
    }

    /// Destroys a descriptor.
    fn cublasLtMatmulDescDestroy(descriptor: usize) {
        DESCRIPTORS.remove(descriptor)
    }

    /// No workspace, and addresses that are multiples of 256, until attributes say otherwise.
    fn cublasLtMatmulPreferenceCreate(preference: Out<usize>) {
        preference.set(PREFERENCES.insert(Preference { workspace: 0, alignment: [256; 4] }))
    }

    /// Sets an attribute of a preference.
    fn cublasLtMatmulPreferenceSetAttribute(preference: usize, attribute: c_int, value: *const u8, bytes: usize) {
        // SAFETY: the caller promises `bytes` readable bytes.
        let value = unsafe { Value::new(value, bytes) }?;
        PREFERENCES.update(preference, |preference| preference.set(attribute, value))
    }

    /// Destroys a preference.
    fn cublasLtMatmulPreferenceDestroy(preference: usize) {
        PREFERENCES.remove(preference)
    }
}
