//! The memory map: the one place of this module that needs `unsafe`.

use crate::error::Place;
use crate::{Error, Result};
use memmap2::Mmap;
use std::fs::File;
use std::path::Path;

/// Maps a regular file for reading.
///
/// # Errors
/// [`Error::Input`] if there is no such file, it is not a regular file, or it is empty; [`Error::Io`] if the system
/// refuses.
pub(super) fn map(path: &Path) -> Result<Mmap> {
    // Asked before opening: opening a pipe would wait for a writer.
    let kind = std::fs::metadata(path).map_err(|e| Error::io(path, "open", e))?;
    if !kind.is_file() {
        return Err(Error::input(Place::file(path), "a file", if kind.is_dir() { "a directory" } else { "a device" }));
    }
    if kind.len() == 0 {
        return Err(Error::input(Place::file(path), "a weights file", "an empty file").hint("download it again"));
    }
    let file = File::open(path).map_err(|e| Error::io(path, "open", e))?;
    map_file(&file).map_err(|e| Error::io(path, "map", e))
}

#[allow(unsafe_code)]
fn map_file(file: &File) -> std::io::Result<Mmap> {
    // SAFETY: the map is private and read-only, and holds plain bytes, so any content is valid. What it cannot rule
    // out is another process changing or cutting the file meanwhile: then values change, or the system stops this
    // process with SIGBUS. Model files are written once and replaced by renaming; that is assumed here, as by every
    // program that maps them.
    unsafe { Mmap::map(file) }
}
