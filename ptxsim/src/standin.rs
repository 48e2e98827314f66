//! Finds the stand-in libraries that cargo built, and has programs load them in place of NVIDIA's.
//!
//! A package that names `ptxsim-cuda` and `ptxsim-cublaslt` as dev-dependencies has them built before its tests run, into
//! the folder of the test programs. [`install`] opens them there; from then on whoever asks the system's loader for
//! `libcuda.so` or `libcublasLt.so` in this process is given them, by their SONAME. Programs that a test starts find them
//! through [`environment_for_children`].
//!
//! ```no_run
//! use ptxsim::standin::{self, Library};
//! standin::install(&Library::ALL)?; // before the first CUDA call
//! # Ok::<(), String>(())
//! ```

use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// Names a folder where the libraries are looked for, and nowhere else.
const FOLDER_VARIABLE: &str = "PTXSIM_LIBRARIES";

/// A stand-in library.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Library {
    /// The CUDA driver.
    Cuda,
    /// cuBLASLt.
    CublasLt,
}

impl Library {
    /// All of them.
    pub const ALL: [Library; 2] = [Library::Cuda, Library::CublasLt];

    /// The package that builds it.
    fn package(self) -> &'static str {
        match self {
            Library::Cuda => "ptxsim-cuda",
            Library::CublasLt => "ptxsim-cublaslt",
        }
    }

    /// The file that cargo makes.
    fn file_name(self) -> String {
        format!("lib{}.so", self.package().replace('-', "_"))
    }

    /// What programs ask the loader for; the first is the SONAME.
    pub fn names(self) -> [&'static str; 2] {
        match self {
            Library::Cuda => ["libcuda.so", "libcuda.so.1"],
            Library::CublasLt => ["libcublasLt.so", "libcublasLt.so.12"],
        }
    }
}

/// Where a library was built: beside the running program, or in the folder that `PTXSIM_LIBRARIES` names.
pub fn library_path(library: Library) -> Result<PathBuf, String> {
    let folders = match std::env::var_os(FOLDER_VARIABLE) {
        Some(folder) if !folder.is_empty() => vec![PathBuf::from(folder)],
        _ => {
            let program = std::env::current_exe().map_err(|error| format!("the running program's path: {error}"))?;
            // Tests and benches are in `deps` with the libraries, examples beside it, programs above it.
            let beside = program.parent().unwrap_or(Path::new("/")).to_path_buf();
            vec![beside.clone(), beside.join("deps"), beside.join("../deps")]
        }
    };
    let paths: Vec<PathBuf> = folders.iter().map(|folder| folder.join(library.file_name())).collect();
    paths.iter().find(|path| path.exists()).map(|path| std::path::absolute(path).unwrap_or(path.clone())).ok_or_else(|| {
        format!(
            "{} is not built: none of {paths:?} exists; name {} as a dev-dependency of the package under test, or set {FOLDER_VARIABLE} \
             to the folder that has it",
            library.file_name(),
            library.package()
        )
    })
}

/// Opens the libraries, so that this process uses them from now on, and gives their paths. Must come before the first CUDA
/// call: a driver that is loaded already is an error.
pub fn install(libraries: &[Library]) -> Result<Vec<PathBuf>, String> {
    libraries.iter().map(|library| open(*library)).collect()
}

#[cfg(target_os = "linux")]
fn open(library: Library) -> Result<PathBuf, String> {
    use std::ffi::{CStr, CString, c_char, c_int, c_void};
    use std::os::unix::ffi::OsStrExt;

    const RTLD_NOW: c_int = 2;
    const RTLD_NOLOAD: c_int = 4;
    const RTLD_GLOBAL: c_int = 0x100;
    unsafe extern "C" {
        fn dlopen(path: *const c_char, flags: c_int) -> *mut c_void;
        fn dlerror() -> *const c_char;
    }

    let path = library_path(library)?;
    let file = CString::new(path.as_os_str().as_bytes()).map_err(|_| format!("{path:?} has a zero byte"))?;
    // SAFETY: the library is the project's own; its initialisers do nothing. It is never closed, as it must not be.
    let opened = unsafe { dlopen(file.as_ptr(), RTLD_NOW | RTLD_GLOBAL) };
    if opened.is_null() {
        // SAFETY: an error has just been made, on this thread; it is a string until the next call.
        let error = unsafe { CStr::from_ptr(dlerror()) };
        return Err(format!("{}: {}", path.display(), error.to_string_lossy()));
    }
    let name = CString::new(library.names()[0]).map_err(|error| error.to_string())?;
    // SAFETY: nothing is loaded by this.
    let known = unsafe { dlopen(name.as_ptr(), RTLD_NOW | RTLD_NOLOAD) };
    if known != opened {
        return Err(format!(
            "another {} is loaded in this process already, not {}; install the stand-ins before the first CUDA call",
            library.names()[0],
            path.display()
        ));
    }
    Ok(path)
}

#[cfg(not(target_os = "linux"))]
fn open(library: Library) -> Result<PathBuf, String> {
    Err(format!("{}: the stand-in libraries are for Linux", library.names()[0]))
}

/// A folder where the libraries are under the names that programs look for, beside where they were built.
pub fn directory_for_children(libraries: &[Library]) -> Result<PathBuf, String> {
    let paths = libraries.iter().map(|library| library_path(*library)).collect::<Result<Vec<_>, _>>()?;
    let Some(beside) = paths.first().and_then(|path| path.parent()) else {
        return Err("no libraries: expected at least one".into());
    };
    let packages: Vec<&str> = libraries.iter().map(|library| library.package()).collect();
    let folder = beside.join(format!("{}-folder", packages.join("-")));
    let failed = |error: std::io::Error| format!("{}: {error}", folder.display());
    std::fs::create_dir_all(&folder).map_err(failed)?;
    for (library, path) in libraries.iter().zip(&paths) {
        for name in library.names() {
            link(path, &folder.join(name)).map_err(failed)?;
        }
    }
    Ok(folder)
}

/// Puts a link in place in one step, as other tests may do the same at this moment.
#[cfg(unix)]
fn link(target: &Path, at: &Path) -> std::io::Result<()> {
    use std::sync::atomic::{AtomicU32, Ordering};
    static COUNT: AtomicU32 = AtomicU32::new(0);

    if std::fs::read_link(at).is_ok_and(|old| old == target) {
        return Ok(());
    }
    let unique = format!("new-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
    let new = at.with_extension(unique);
    std::os::unix::fs::symlink(target, &new)?;
    std::fs::rename(&new, at)
}

#[cfg(not(unix))]
fn link(target: &Path, at: &Path) -> std::io::Result<()> {
    std::fs::copy(target, at).map(drop)
}

/// The environment variable, name and value, with which a program that is started finds the libraries.
pub fn environment_for_children(libraries: &[Library]) -> Result<(&'static str, OsString), String> {
    const VARIABLE: &str = "LD_LIBRARY_PATH";
    let mut folders = vec![directory_for_children(libraries)?];
    if let Some(others) = std::env::var_os(VARIABLE).filter(|others| !others.is_empty()) {
        folders.extend(std::env::split_paths(&others));
    }
    std::env::join_paths(folders).map(|value| (VARIABLE, value)).map_err(|error| error.to_string())
}
