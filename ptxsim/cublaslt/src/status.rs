//! `cublasStatus_t` codes and their names.

use std::ffi::{CStr, c_char, c_int};

/// A `cublasStatus_t` other than success.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Status(pub(crate) c_int);

pub(crate) type Result<T = ()> = std::result::Result<T, Status>;

impl Status {
    pub(crate) const NOT_INITIALIZED: Status = Status(1);
    pub(crate) const INVALID_VALUE: Status = Status(7);
    pub(crate) const EXECUTION_FAILED: Status = Status(13);
    pub(crate) const NOT_SUPPORTED: Status = Status(15);
}

const NAMES: &[(c_int, &CStr)] = &[
    (0, c"CUBLAS_STATUS_SUCCESS"),
    (1, c"CUBLAS_STATUS_NOT_INITIALIZED"),
    (3, c"CUBLAS_STATUS_ALLOC_FAILED"),
    (7, c"CUBLAS_STATUS_INVALID_VALUE"),
    (8, c"CUBLAS_STATUS_ARCH_MISMATCH"),
    (11, c"CUBLAS_STATUS_MAPPING_ERROR"),
    (13, c"CUBLAS_STATUS_EXECUTION_FAILED"),
    (14, c"CUBLAS_STATUS_INTERNAL_ERROR"),
    (15, c"CUBLAS_STATUS_NOT_SUPPORTED"),
    (16, c"CUBLAS_STATUS_LICENSE_ERROR"),
];

fn name(status: c_int) -> *const c_char {
    let row = NAMES.iter().find(|(code, _)| *code == status);
    row.map_or(c"CUBLAS_STATUS_UNKNOWN", |(_, name)| name).as_ptr()
}

/// The name of a status.
#[unsafe(no_mangle)]
pub extern "C" fn cublasLtGetStatusName(status: c_int) -> *const c_char {
    name(status)
}

/// The same: a status has no other text.
#[unsafe(no_mangle)]
pub extern "C" fn cublasLtGetStatusString(status: c_int) -> *const c_char {
    name(status)
}

/// Says on stderr why a call is refused, which the library does not.
pub(crate) fn refuse<T>(status: Status, why: impl std::fmt::Display) -> Result<T> {
    eprintln!("ptxsim: cuBLASLt: {why}");
    Err(status)
}
