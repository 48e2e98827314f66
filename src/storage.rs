//! Reading whole small files, and saves that are either complete or not there.
//!
//! A save goes to a temporary name in the same directory, is flushed to the disk, and is renamed over its final name;
//! then the directory itself is flushed. A crash at any point leaves the old content or the new one under the final
//! name, with one exception that readers must know of: a *directory* cannot be renamed over another, so an old one
//! steps aside to [`aside_name`] for an instant. [`existing_dir`] finds it there.

use crate::error::{Error, Place, Result};
use sha2::{Digest, Sha256};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// The whole of a file that should have at most `limit` bytes.
///
/// # Errors
/// `Input` where the file is missing or larger, `Io` where it cannot be read.
pub fn read_limited(path: impl AsRef<Path>, limit: u64) -> Result<Vec<u8>> {
    let path = path.as_ref();
    let file = File::open(path).map_err(|e| Error::io(path, "open", e))?;
    let mut bytes = Vec::new();
    // One byte more than allowed tells a file at the limit from one past it, without trusting its reported length.
    file.take(limit.saturating_add(1)).read_to_end(&mut bytes).map_err(|e| Error::io(path, "read", e))?;
    if bytes.len() as u64 > limit {
        return Err(Error::input(Place::file(path), format!("at most {limit} bytes"), "a larger file"));
    }
    Ok(bytes)
}

/// The first `length` bytes of the file at `path`, or as many as can be read: to tell formats apart.
pub fn read_start(path: impl AsRef<Path>, length: u64) -> Vec<u8> {
    let mut start = Vec::new();
    if let Ok(file) = File::open(path) {
        // What was read until an error still tells the format; whoever reads the whole file reports the error.
        drop(file.take(length).read_to_end(&mut start));
    }
    start
}

/// Replaces the content of `path` by `bytes`, all or nothing; missing parent directories are made.
///
/// A symbolic link is followed. What is there and is no regular file (a device, a pipe) is written to as it is.
///
/// # Errors
/// `Io` for whatever the system refuses, a full disk included; `path` then has its old content and no temporary file
/// is left.
pub fn atomic_write(path: impl AsRef<Path>, bytes: &[u8]) -> Result<()> {
    let path = &resolve_link(path.as_ref());
    match fs::metadata(path) {
        Ok(meta) if meta.is_dir() => {
            return Err(Error::io(path, "write", io::Error::from(io::ErrorKind::IsADirectory)));
        }
        // Renaming over /dev/stdout would destroy it.
        Ok(meta) if !meta.is_file() => return write_special(path, bytes),
        _ => {}
    }
    let parent = make_parent(path)?;
    let temporary = Temporary::beside(path)?;
    write_new(&temporary.path, bytes).map_err(|e| Error::io(path, "write", e))?;
    fs::rename(&temporary.path, path).map_err(|e| Error::io(path, "rename into place", e))?;
    temporary.keep();
    sync_dir(&parent)
}

/// Whether [`atomic_write`] may write `path`, as far as that can be told beforehand: for work that takes long until there is
/// something to write. Leaves nothing behind.
///
/// # Errors
/// `Io` for whatever the system refuses; `Usage` where `path` ends in no name.
pub fn check_writable(path: impl AsRef<Path>) -> Result<()> {
    let path = &resolve_link(path.as_ref());
    match fs::metadata(path) {
        Ok(meta) if meta.is_dir() => {
            return Err(Error::io(path, "write", io::Error::from(io::ErrorKind::IsADirectory)));
        }
        Ok(meta) if !meta.is_file() => return Ok(()),
        _ => {}
    }
    let name = file_name(path)?;
    // Parents that are missing will be made in the nearest one that is there.
    let folders = path.ancestors().skip(1).map(|folder| match folder.as_os_str().is_empty() {
        true => Path::new("."),
        false => folder,
    });
    let folder = folders.into_iter().find(|folder| folder.exists()).unwrap_or(Path::new("."));
    let probe = Temporary::beside(&folder.join(name))?;
    write_new(&probe.path, b"").map_err(|e| Error::io(path, "write", e))
}

/// Replaces the directory `path` by what `fill` writes into the fresh directory it is given, all or nothing; missing
/// parent directories are made. Whatever `path` held before is gone afterwards: asking first is the caller's part.
///
/// # Errors
/// Those of `fill`; `Io` for whatever the system refuses. `path` then is as it was, and nothing temporary is left.
pub fn atomic_dir(path: impl AsRef<Path>, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let path = path.as_ref();
    let parent = make_parent(path)?;
    recover_dir(path)?;
    if fs::metadata(path).is_ok_and(|meta| !meta.is_dir()) {
        return Err(Error::io(path, "replace by a directory", io::Error::from(io::ErrorKind::NotADirectory)));
    }
    let temporary = Temporary::beside(path)?;
    fs::create_dir(&temporary.path).map_err(|e| Error::io(path, "create", e))?;
    fill(&temporary.path)?;
    sync_tree(&temporary.path).map_err(|e| Error::io(path, "flush", e))?;
    swap_in(&temporary.path, path)?;
    temporary.keep();
    sync_dir(&parent)?;
    let aside = aside_name(path)?;
    if aside.exists() {
        fs::remove_dir_all(&aside).map_err(|e| Error::io(&aside, "remove", e))?;
        sync_dir(&parent)?;
    }
    Ok(())
}

/// Where a directory that [`atomic_dir`] was replacing when the machine stopped may be found.
///
/// # Errors
/// `Usage` where `path` ends in no name.
pub fn aside_name(path: &Path) -> Result<PathBuf> {
    Ok(path.with_file_name(format!(".{}.old", file_name(path)?)))
}

/// `path`, or where a save that was cut short left the directory's last complete content. Changes nothing.
pub fn existing_dir(path: impl AsRef<Path>) -> PathBuf {
    let path = path.as_ref();
    match aside_name(path) {
        Ok(aside) if !path.exists() && aside.is_dir() => aside,
        _ => path.to_path_buf(),
    }
}

/// Undoes or completes a replacement that was cut short, so that `path` alone holds the last complete content.
///
/// # Errors
/// `Io` for whatever the system refuses.
pub fn recover_dir(path: impl AsRef<Path>) -> Result<()> {
    let path = path.as_ref();
    let aside = aside_name(path)?;
    if !aside.is_dir() {
        return Ok(());
    }
    if path.exists() {
        return fs::remove_dir_all(&aside).map_err(|e| Error::io(&aside, "remove", e));
    }
    fs::rename(&aside, path).map_err(|e| Error::io(path, "rename into place", e))
}

/// SHA-256 of a file, in lower-case hex, read a little at a time.
///
/// # Errors
/// `Io` where the system refuses.
pub fn file_sha256(path: impl AsRef<Path>) -> Result<String> {
    let path = path.as_ref();
    let mut hash = Sha256::new();
    let mut file = fs::File::open(path).map_err(|e| Error::io(path, "read", e))?;
    io::copy(&mut file, &mut hash).map_err(|e| Error::io(path, "read", e))?;
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Removes temporary files and directories in `dir`, of names beginning with `prefix`, that processes which were
/// killed left there. Those of this process are left alone.
///
/// # Errors
/// `Io` for whatever the system refuses.
pub fn remove_leftovers(dir: impl AsRef<Path>, prefix: &str) -> Result<()> {
    let dir = dir.as_ref();
    let (start, own) = (format!(".{prefix}"), format!(".tmp-{}-", std::process::id()));
    for entry in fs::read_dir(dir).map_err(|e| Error::io(dir, "list", e))? {
        let entry = entry.map_err(|e| Error::io(dir, "list", e))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with(&start) && name.contains(".tmp-") && !name.contains(&own) {
            remove_any(&entry.path()).map_err(|e| Error::io(entry.path(), "remove", e))?;
        }
    }
    Ok(())
}

/// A name not yet taken, whose file or directory is removed again unless it is kept.
struct Temporary {
    path: PathBuf,
    kept: bool,
}

impl Temporary {
    fn beside(path: &Path) -> Result<Self> {
        static COUNTER: AtomicU64 = AtomicU64::new(0);
        let number = COUNTER.fetch_add(1, Ordering::Relaxed);
        let name = format!(".{}.tmp-{}-{number}", file_name(path)?, std::process::id());
        Ok(Self { path: path.with_file_name(name), kept: false })
    }

    fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if !self.kept {
            // The error that led here matters more than one of tidying up.
            let _ = remove_any(&self.path);
        }
    }
}

fn remove_any(path: &Path) -> io::Result<()> {
    if fs::symlink_metadata(path)?.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }
}

fn file_name(path: &Path) -> Result<String> {
    match path.file_name() {
        Some(name) => Ok(name.to_string_lossy().into_owned()),
        None => Err(Error::usage(Place::file(path), "a path that ends in a name", format!("{}", path.display()))),
    }
}

fn resolve_link(path: &Path) -> PathBuf {
    match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_symlink() => fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf()),
        _ => path.to_path_buf(),
    }
}

fn make_parent(path: &Path) -> Result<PathBuf> {
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_path_buf(),
        _ => PathBuf::from("."),
    };
    fs::create_dir_all(&parent).map_err(|e| Error::io(&parent, "create", e))?;
    Ok(parent)
}

fn write_special(path: &Path, bytes: &[u8]) -> Result<()> {
    let write = || -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).open(path)?;
        file.write_all(bytes)?;
        file.flush()
    };
    write().map_err(|e| Error::io(path, "write", e))
}

fn write_new(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

fn sync_tree(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            sync_tree(&path)?;
        } else {
            File::open(&path)?.sync_all()?;
        }
    }
    open_dir_and_sync(dir)
}

fn sync_dir(dir: &Path) -> Result<()> {
    open_dir_and_sync(dir).map_err(|e| Error::io(dir, "flush", e))
}

#[cfg(unix)]
fn open_dir_and_sync(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

#[cfg(not(unix))]
fn open_dir_and_sync(_: &Path) -> io::Result<()> {
    Ok(()) // a directory cannot be opened as a file there
}

fn swap_in(fresh: &Path, path: &Path) -> Result<()> {
    let rename = |from: &Path, to: &Path| fs::rename(from, to).map_err(|e| Error::io(path, "rename into place", e));
    if !path.exists() {
        return rename(fresh, path);
    }
    let aside = aside_name(path)?;
    rename(path, &aside)?;
    rename(fresh, path).inspect_err(|_| {
        let _ = fs::rename(&aside, path);
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_file_is_replaced_whole_and_nothing_else_is_left() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b/file");
        atomic_write(&path, b"one").unwrap();
        atomic_write(&path, b"two").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(names(path.parent().unwrap()), ["file"]);
    }

    #[test]
    fn a_path_that_cannot_be_written_is_an_io_error_and_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let taken = dir.path().join("taken");
        fs::create_dir(&taken).unwrap();
        let error = atomic_write(&taken, b"x").unwrap_err();
        assert_eq!(error.exit_code(), 7, "{error}");
        fs::write(dir.path().join("plain"), b"").unwrap();
        let error = atomic_write(dir.path().join("plain/child"), b"x").unwrap_err();
        assert_eq!(error.exit_code(), 7, "{error}");
        assert_eq!(names(dir.path()), ["plain", "taken"]);
        assert_eq!(atomic_write("..", b"x").unwrap_err().exit_code(), 7);
    }

    #[test]
    fn whether_a_path_can_be_written_is_told_without_a_trace() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("plain"), b"kept").unwrap();
        for name in ["new", "not/there/yet", "plain"] {
            check_writable(dir.path().join(name)).unwrap();
        }
        for name in ["plain/child", "plain/child/file", ""] {
            assert_eq!(check_writable(dir.path().join(name)).unwrap_err().exit_code(), 7, "{name}");
        }
        assert_eq!(names(dir.path()), ["plain"]);
        assert_eq!(fs::read(dir.path().join("plain")).unwrap(), b"kept");
        check_writable("new").unwrap();
    }

    #[cfg(unix)]
    #[test]
    fn a_read_only_directory_refuses() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        atomic_write(&path, b"old").unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o555)).unwrap();
        // Where that binds nobody (the user is root), one that the kernel keeps.
        let binds = File::create(dir.path().join("probe")).is_err();
        let path = if binds { path } else { PathBuf::from("/sys/file") };
        for error in [atomic_write(&path, b"new").unwrap_err(), atomic_dir(path, |_| Ok(())).unwrap_err()] {
            assert_eq!(error.exit_code(), 7, "{error}");
        }
        assert!(!binds || names(dir.path()) == ["file"]);
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_full_disk_is_an_io_error_and_the_device_survives() {
        let error = atomic_write("/dev/full", b"x").unwrap_err();
        assert!(matches!(&error, Error::Io { source, .. } if source.kind() == io::ErrorKind::StorageFull), "{error:?}");
        assert_eq!(error.exit_code(), 7);
        assert!(!fs::metadata("/dev/full").unwrap().is_file());
        // The same through a link, as a user would redirect an output.
        let dir = tempfile::tempdir().unwrap();
        let link = dir.path().join("link");
        std::os::unix::fs::symlink("/dev/full", &link).unwrap();
        assert_eq!(atomic_write(&link, b"x").unwrap_err().exit_code(), 7);
        assert_eq!(names(dir.path()), ["link"]);
    }

    #[test]
    fn a_directory_is_replaced_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("d");
        for name in ["one", "two"] {
            atomic_dir(&path, |tmp| atomic_write(tmp.join(name), name.as_bytes())).unwrap();
            assert_eq!(names(&path), [name]);
            assert_eq!(names(dir.path()), ["d"]);
        }
        let failed = atomic_dir(&path, |tmp| {
            atomic_write(tmp.join("three"), b"")?;
            Err(Error::io("d", "write", io::Error::from(io::ErrorKind::StorageFull)))
        });
        assert_eq!(failed.unwrap_err().exit_code(), 7);
        assert_eq!(names(&path), ["two"]);
        assert_eq!(names(dir.path()), ["d"]);
    }

    #[test]
    fn a_replacement_that_was_cut_short_is_found_and_mended() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("d");
        atomic_dir(&path, |tmp| atomic_write(tmp.join("old"), b"")).unwrap();
        let aside = aside_name(&path).unwrap();
        fs::rename(&path, &aside).unwrap();
        assert_eq!(existing_dir(&path), aside);
        recover_dir(&path).unwrap();
        assert_eq!((existing_dir(&path), names(&path)), (path.clone(), vec!["old".to_owned()]));
        // Cut short after the new one was in place: the old one goes.
        fs::create_dir(&aside).unwrap();
        assert_eq!(existing_dir(&path), path);
        atomic_dir(&path, |tmp| atomic_write(tmp.join("new"), b"")).unwrap();
        assert_eq!((names(&path), names(dir.path())), (vec!["new".to_owned()], vec!["d".to_owned()]));
    }

    #[test]
    fn leftovers_of_other_processes_go_and_other_files_stay() {
        let dir = tempfile::tempdir().unwrap();
        let own = format!(".checkpoint-3.tmp-{}-0", std::process::id());
        for name in [".checkpoint-1.tmp-0-7", own.as_str(), ".other.tmp-0-1", "checkpoint-1"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        remove_leftovers(dir.path(), "checkpoint-").unwrap();
        let mut left = vec![own, ".other.tmp-0-1".to_owned(), "checkpoint-1".to_owned()];
        left.sort();
        assert_eq!(names(dir.path()), left);
    }

    #[test]
    fn reading_stops_at_the_limit() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        fs::write(&path, [7; 10]).unwrap();
        assert_eq!(read_limited(&path, 10).unwrap(), [7; 10]);
        assert_eq!(read_limited(&path, 9).unwrap_err().exit_code(), 4);
        assert_eq!(read_limited(dir.path().join("none"), 9).unwrap_err().exit_code(), 4);
    }
}
