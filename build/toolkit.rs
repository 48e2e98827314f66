//! Which nvcc compiles the kernels, if any.

use crate::{entries, is_set, run, variable};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

/// The compiler to use and its release, or none if the committed PTX is to be embedded.
pub(crate) fn choose_compiler(root: &Path, prebuilt: &Path) -> Result<Option<(PathBuf, String)>, String> {
    let required = is_set("SOFTPROMPT_REQUIRE_NVCC");
    let Some(nvcc) = find_nvcc(root) else {
        return if required {
            Err("SOFTPROMPT_REQUIRE_NVCC is set, but no nvcc was found: set NVCC".into())
        } else {
            Ok(None)
        };
    };
    let explicit = required || is_set("NVCC") || is_set("SOFTPROMPT_UPDATE_PREBUILT");
    let release = match run(Command::new(&nvcc).arg("--version")) {
        Ok(text) => {
            text.lines().find(|line| line.contains("release")).unwrap_or("an unknown release").trim().to_owned()
        }
        Err(message) if explicit => return Err(message),
        Err(_) => return Ok(None),
    };
    let pinned = fs::read_to_string(prebuilt.join("compiler.txt")).unwrap_or_default();
    Ok((explicit || release == pinned.trim()).then_some((nvcc, release)))
}

/// The first nvcc among: `NVCC`, the CUDA home, `PATH`, the usual place, the folder of the Python packages
/// `nvidia-cuda-nvcc` and `nvidia-cuda-cccl`.
fn find_nvcc(root: &Path) -> Option<PathBuf> {
    if let Some(nvcc) = env::var_os("NVCC") {
        return (!nvcc.is_empty()).then(|| nvcc.into());
    }
    let mut folders: Vec<PathBuf> = Vec::new();
    folders.extend(
        ["CUDA_HOME", "CUDA_PATH"].iter().filter_map(|name| variable(name)).map(|home| Path::new(&home).join("bin")),
    );
    folders.extend(env::var_os("PATH").iter().flat_map(env::split_paths));
    folders.push("/usr/local/cuda/bin".into());

    let virtual_env = variable("VIRTUAL_ENV").map(PathBuf::from);
    let mut packages: Vec<PathBuf> = Vec::new();
    for environment in virtual_env.into_iter().chain([root.join(".cuda-venv")]) {
        // lib/python3.x on Unix.
        packages
            .extend(entries(&environment.join("lib")).into_iter().map(|python| python.join("site-packages/nvidia")));
    }
    let ask = ["-c", "import nvidia; print('\\n'.join(nvidia.__path__))"];
    if let Ok(paths) = run(Command::new("python3").args(ask)) {
        packages.extend(paths.lines().map(PathBuf::from));
    }
    for package in packages {
        let mut toolkits = entries(&package);
        toolkits.retain(|folder| folder.file_name().is_some_and(|name| name.to_string_lossy().starts_with("cu")));
        folders.extend(toolkits.into_iter().map(|toolkit| toolkit.join("bin")));
    }
    let name = format!("nvcc{}", env::consts::EXE_SUFFIX);
    folders.into_iter().map(|folder| folder.join(&name)).find(|path| path.is_file())
}
