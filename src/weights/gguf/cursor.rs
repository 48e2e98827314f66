//! Reading forward through bytes that nobody vouches for.

use crate::error::Place;
use crate::{Error, Result};
use std::path::Path;

/// A place in a file's bytes.
pub(super) struct Cursor<'a> {
    path: &'a Path,
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    /// At the start of `bytes`; `path` is for messages.
    pub(super) fn new(path: &'a Path, bytes: &'a [u8]) -> Self {
        Self { path, bytes, at: 0 }
    }

    pub(super) fn path(&self) -> &'a Path {
        self.path
    }

    pub(super) fn at(&self) -> usize {
        self.at
    }

    fn left(&self) -> usize {
        self.bytes.len() - self.at
    }

    fn broken(&self, expected: String, got: String) -> Error {
        Error::input(Place::file(self.path), format!("{expected} at byte {}", self.at), got)
            .hint("the file is broken or cut off: download it again")
    }

    /// The next `n` bytes, which are `what`.
    pub(super) fn take(&mut self, n: usize, what: &str) -> Result<&'a [u8]> {
        if n > self.left() {
            return Err(self.broken(format!("{n} bytes of {what}"), format!("only {} left", self.left())));
        }
        let taken = &self.bytes[self.at..self.at + n];
        self.at += n;
        Ok(taken)
    }

    pub(super) fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N]> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N, what)?);
        Ok(array)
    }

    pub(super) fn u32(&mut self, what: &str) -> Result<u32> {
        self.array(what).map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self, what: &str) -> Result<u64> {
        self.array(what).map(u64::from_le_bytes)
    }

    /// A count of things that take at least `smallest` bytes each.
    pub(super) fn count(&mut self, smallest: usize, what: &str) -> Result<usize> {
        let count = self.u64(what)?;
        self.check_count(count, smallest, what)
    }

    /// `count`, if so many things of at least `smallest` bytes can still follow.
    pub(super) fn check_count(&self, count: u64, smallest: usize, what: &str) -> Result<usize> {
        let most = self.left() / smallest;
        match usize::try_from(count) {
            Ok(count) if count <= most => Ok(count),
            _ => Err(self.broken(format!("at most {most} {what}"), count.to_string())),
        }
    }

    /// A length and so many bytes of UTF-8.
    pub(super) fn string(&mut self, what: &str) -> Result<&'a str> {
        let length = self.count(1, &format!("bytes of {what}"))?;
        let bytes = self.take(length, what)?;
        std::str::from_utf8(bytes).map_err(|e| self.broken(format!("{what} in UTF-8"), e.to_string()))
    }
}
