//! The C side of the entry points.

use crate::status::{Result, Status};
use std::collections::HashMap;
use std::ffi::c_int;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// A pointer through which an entry point hands back a value.
#[repr(transparent)]
pub struct Out<T>(*mut T);

impl<T> Out<T> {
    /// Writes the result; a null pointer is an invalid value.
    pub(crate) fn set(&self, value: T) -> Result {
        if self.0.is_null() {
            return Err(Status::INVALID_VALUE);
        }
        // SAFETY: only a caller of an entry point makes an `Out`, and promises that it is null or points to a `T`.
        unsafe { self.0.write(value) };
        Ok(())
    }
}

/// An attribute's value, as `*SetAttribute` are given it.
pub(crate) struct Value<'a>(&'a [u8]);

impl<'a> Value<'a> {
    /// # Safety
    /// `pointer` is null or has `bytes` readable bytes.
    pub(crate) unsafe fn new(pointer: *const u8, bytes: usize) -> Result<Value<'a>> {
        if pointer.is_null() {
            return Err(Status::INVALID_VALUE);
        }
        // SAFETY: promised by the caller.
        Ok(Value(unsafe { std::slice::from_raw_parts(pointer, bytes) }))
    }

    /// The value, of exactly as many bytes as the attribute has.
    pub(crate) fn bytes<const N: usize>(&self) -> Result<[u8; N]> {
        self.0.try_into().map_err(|_| Status::INVALID_VALUE)
    }

    pub(crate) fn int(&self) -> Result<i32> {
        self.bytes().map(i32::from_ne_bytes)
    }

    pub(crate) fn long(&self) -> Result<i64> {
        self.bytes().map(i64::from_ne_bytes)
    }

    pub(crate) fn unsigned_long(&self) -> Result<u64> {
        self.bytes().map(u64::from_ne_bytes)
    }
}

/// Objects behind handles. A handle is never used twice, so one that was destroyed is noticed.
pub(crate) struct Table<T> {
    objects: Mutex<Option<(usize, HashMap<usize, T>)>>,
    first: usize,
}

impl<T: Clone> Table<T> {
    /// Handles count up from `first`, so that one kind of object is not taken for another.
    pub(crate) const fn new(first: usize) -> Self {
        Table { objects: Mutex::new(None), first }
    }

    fn lock(&self) -> MutexGuard<'_, Option<(usize, HashMap<usize, T>)>> {
        self.objects.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn insert(&self, object: T) -> usize {
        let mut objects = self.lock();
        let (next, map) = objects.get_or_insert_with(|| (self.first, HashMap::new()));
        let handle = *next;
        *next += 16;
        map.insert(handle, object);
        handle
    }

    pub(crate) fn get(&self, handle: usize) -> Result<T> {
        self.update(handle, |object| Ok(object.clone()))
    }

    pub(crate) fn update<R>(&self, handle: usize, change: impl FnOnce(&mut T) -> Result<R>) -> Result<R> {
        let mut objects = self.lock();
        let object = objects.as_mut().and_then(|(_, map)| map.get_mut(&handle));
        change(object.ok_or(Status::INVALID_VALUE)?)
    }

    pub(crate) fn remove(&self, handle: usize) -> Result {
        let mut objects = self.lock();
        objects.as_mut().and_then(|(_, map)| map.remove(&handle)).map(drop).ok_or(Status::INVALID_VALUE)
    }
}

/// The `cublasStatus_t` of an entry point's body.
pub(crate) fn status(result: Result) -> c_int {
    match result {
        Ok(()) => 0,
        Err(status) => status.0,
    }
}

/// Defines entry points: each body is a `Result`, and becomes an exported C function that returns a `cublasStatus_t`.
macro_rules! entry_points {
    ($($(#[$attribute:meta])* fn $name:ident($($argument:ident: $kind:ty),* $(,)?) $body:block)*) => {$(
        $(#[$attribute])*
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name($($argument: $kind),*) -> std::ffi::c_int {
            let body = move || -> crate::status::Result { $body };
            crate::abi::status(body())
        }
    )*};
}
pub(crate) use entry_points;
