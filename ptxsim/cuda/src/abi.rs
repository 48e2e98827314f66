//! The C side of the entry points: how arguments come in and results go out.

use crate::error::{Error, Result};
use std::ffi::{CStr, c_char, c_int, c_void};

/// An opaque handle (`CUstream`, `CUmodule`, ...): a number looked up in a table, never an address that is followed.
pub(crate) type Handle = usize;

/// A pointer through which an entry point hands back a value.
#[repr(transparent)]
pub struct Out<T>(*mut T);

impl<T> Out<T> {
    /// Writes the result; a null pointer is an invalid argument.
    pub(crate) fn set(&self, value: T) -> Result {
        if self.0.is_null() {
            return Err(Error::INVALID_VALUE);
        }
        // SAFETY: only a caller of an entry point makes an `Out`, and promises that it is null or points to a `T`.
        unsafe { self.0.write(value) };
        Ok(())
    }

    /// Whether the caller gave a place for the result.
    pub(crate) fn is_some(&self) -> bool {
        !self.0.is_null()
    }

    /// Writes the result where the caller wants it: a null pointer says that it does not.
    pub(crate) fn set_if_wanted(&self, value: T) {
        let _ = self.set(value);
    }
}

/// A C string that an entry point is given.
#[repr(transparent)]
pub struct Name(*const c_char);

impl Name {
    /// The text; null and text that is not UTF-8 are invalid arguments.
    pub(crate) fn text(&self) -> Result<&str> {
        if self.0.is_null() {
            return Err(Error::INVALID_VALUE);
        }
        // SAFETY: only a caller of an entry point makes a `Name`, and promises a string that ends with a zero byte and
        // outlives the call.
        unsafe { CStr::from_ptr(self.0) }.to_str().map_err(|_| Error::INVALID_VALUE)
    }
}

/// Host memory that a copy reads or writes; how much of it is another argument.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct Host(*mut c_void);

// SAFETY: a plain address. Whoever follows it relies on the promise made to the entry point, on whichever thread.
unsafe impl Send for Host {}
// SAFETY: as above.
unsafe impl Sync for Host {}

impl Host {
    pub(crate) fn address(self) -> usize {
        self.0 as usize
    }

    pub(crate) fn pointer(self) -> *mut c_void {
        self.0
    }

    pub(crate) fn at(address: usize) -> Host {
        Host(address as *mut c_void)
    }

    /// The `bytes` bytes at this address, to be read.
    ///
    /// # Safety
    /// They must be readable for as long as the slice is used, and nothing else may write them.
    pub(crate) unsafe fn bytes<'a>(self, bytes: usize) -> Result<&'a [u8]> {
        if bytes == 0 {
            return Ok(&[]);
        }
        if self.0.is_null() {
            return Err(Error::INVALID_VALUE);
        }
        // SAFETY: not null; the rest is promised by the caller.
        Ok(unsafe { std::slice::from_raw_parts(self.0.cast(), bytes) })
    }

    /// The `bytes` bytes at this address, to be written.
    ///
    /// # Safety
    /// They must be writable for as long as the slice is used, and nothing else may read or write them.
    pub(crate) unsafe fn bytes_mut<'a>(self, bytes: usize) -> Result<&'a mut [u8]> {
        if bytes == 0 {
            return Ok(&mut []);
        }
        if self.0.is_null() {
            return Err(Error::INVALID_VALUE);
        }
        // SAFETY: not null; the rest is promised by the caller.
        Ok(unsafe { std::slice::from_raw_parts_mut(self.0.cast(), bytes) })
    }
}

/// The `CUresult` of an entry point's body.
pub(crate) fn status(result: Result) -> c_int {
    match result {
        Ok(()) => 0,
        Err(error) => error.0,
    }
}

/// Defines entry points: each body is a `Result`, and becomes an exported C function that returns a `CUresult`.
macro_rules! entry_points {
    ($($(#[$attribute:meta])* fn $name:ident($($argument:ident: $kind:ty),* $(,)?) $body:block)*) => {$(
        $(#[$attribute])*
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name($($argument: $kind),*) -> std::ffi::c_int {
            let body = move || -> crate::error::Result { $body };
            crate::abi::status(body())
        }
    )*};
}
pub(crate) use entry_points;
