//! Compiles `kernels/*.cu` to the PTX that the crate embeds, or embeds the PTX committed under `kernels/prebuilt/`.
//!
//! The committed PTX was written by one pinned compiler. Where that compiler is found the kernels are compiled again, so
//! that a changed kernel takes effect; where there is none, or another one, the committed PTX is used, so that nobody
//! needs a toolkit. A test compares the two. Nothing here asks a GPU anything.
//!
//! Environment:
//! * `NVCC`: the compiler to use, whatever its version; empty for none
//! * `CUDA_HOME`, `CUDA_PATH`, `VIRTUAL_ENV`: where to look for one, before the usual places
//! * `SOFTPROMPT_REQUIRE_NVCC=1`: fail rather than use the committed PTX
//! * `SOFTPROMPT_UPDATE_PREBUILT=1`: write `kernels/prebuilt/` anew, and pin the compiler that was found

#[path = "build/sass.rs"]
mod sass;
#[path = "build/toolkit.rs"]
mod toolkit;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::{env, fs, thread};

/// PTX ISA of the embedded text: the lowest that has all it uses. sm_80 came with 7.0, and `.loc … inlined_at`, which
/// `-lineinfo` writes, with 7.2. A driver compiles any text of its own version or below.
const PTX_VERSION: &str = "7.2";

/// Targets that ptxas compiles the text for as a proof, each with the lowest PTX ISA that knows it and that text.
const TARGETS: [(&str, &str); 2] = [("sm_80", PTX_VERSION), ("sm_90", "7.8")];

const ENVIRONMENT: [&str; 6] =
    ["NVCC", "CUDA_HOME", "CUDA_PATH", "VIRTUAL_ENV", "SOFTPROMPT_REQUIRE_NVCC", "SOFTPROMPT_UPDATE_PREBUILT"];

/// What the crate embeds.
struct Kernels {
    /// Name of the op and path of its PTX.
    modules: Vec<(String, PathBuf)>,
    /// What ptxas says of every kernel.
    report: String,
    /// The instructions of every kernel by kind; empty where there is no nvdisasm to list them.
    instructions: String,
    /// The compiler that wrote the PTX.
    compiler: String,
}

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=build");
    println!("cargo::rerun-if-changed=kernels");
    for name in ENVIRONMENT {
        println!("cargo::rerun-if-env-changed={name}");
    }
    if let Err(message) = embed() {
        eprintln!("{message}");
        std::process::exit(1);
    }
}

fn embed() -> Result<(), String> {
    let root = PathBuf::from(variable("CARGO_MANIFEST_DIR").ok_or("cargo sets CARGO_MANIFEST_DIR")?);
    let out = PathBuf::from(variable("OUT_DIR").ok_or("cargo sets OUT_DIR")?);
    let prebuilt = root.join("kernels/prebuilt");
    let update = is_set("SOFTPROMPT_UPDATE_PREBUILT");

    let (kernels, built) = match toolkit::choose_compiler(&root, &prebuilt)? {
        Some((nvcc, release)) => {
            let mut kernels = compile(&root, &out, &nvcc, release)?;
            if update {
                write_prebuilt(&prebuilt, &kernels)?;
            } else if kernels.instructions.is_empty() {
                kernels.instructions = read(&prebuilt.join("sass.txt"))?;
            }
            (kernels, true)
        }
        None if update => return Err("SOFTPROMPT_UPDATE_PREBUILT is set, but no nvcc was found: set NVCC".into()),
        None => (read_prebuilt(&prebuilt)?, false),
    };

    let mut source = String::from("/// Each op with its PTX.\npub static MODULES: &[(&str, &str)] = &[\n");
    for (op, path) in &kernels.modules {
        source += &format!("    ({op:?}, include_str!({path:?})),\n");
    }
    source += "];\n";
    source += &format!("/// What ptxas says of every kernel.\npub static PTXAS: &str = {:?};\n", kernels.report);
    source += &format!(
        "/// The instructions of every kernel by kind.\npub static SASS: &str = {:?};\n",
        kernels.instructions
    );
    source += &format!("/// The compiler that wrote the PTX.\npub static COMPILER: &str = {:?};\n", kernels.compiler);
    source += &format!(
        "/// Whether this build compiled the PTX rather than embed the committed one.\npub static BUILT: bool = {built};\n"
    );
    write(&out.join("kernels.rs"), &source)
}

/// Compiles every op, as many at a time as cargo allows.
fn compile(root: &Path, out: &Path, nvcc: &Path, release: String) -> Result<Kernels, String> {
    let mut ops: Vec<String> = entries(&root.join("kernels"))
        .iter()
        .filter(|path| path.extension().is_some_and(|extension| extension == "cu"))
        .filter_map(|path| Some(path.file_stem()?.to_str()?.to_owned()))
        .collect();
    ops.sort();
    let jobs = variable("NUM_JOBS").and_then(|jobs| jobs.parse().ok()).unwrap_or(1usize).clamp(1, ops.len().max(1));
    let next = AtomicUsize::new(0);
    let work = || {
        let mut done = Vec::new();
        while let Some(op) = ops.get(next.fetch_add(1, Ordering::Relaxed)) {
            done.push((op.clone(), compile_op(root, out, nvcc, op)));
        }
        done
    };
    let mut done: Vec<_> = thread::scope(|scope| {
        let workers: Vec<_> = (0..jobs).map(|_| scope.spawn(work)).collect();
        workers.into_iter().flat_map(|worker| worker.join().expect("a compiling thread does not panic")).collect()
    });
    done.sort_by(|(a, _), (b, _)| a.cmp(b));

    let mut kernels =
        Kernels { modules: Vec::new(), report: String::new(), instructions: String::new(), compiler: release };
    for (op, result) in done {
        let Compiled { ptx, report, instructions } = result.map_err(|message| {
            format!("{message}\nTo build with the committed kernels instead, set NVCC to nothing: NVCC= cargo build")
        })?;
        kernels.modules.push((op, ptx));
        kernels.report += &report;
        kernels.instructions += &instructions;
    }
    if !kernels.instructions.is_empty() {
        kernels.instructions.insert_str(0, &sass::header());
    }
    Ok(kernels)
}

/// An op's PTX, what ptxas says of it, and the instructions of its kernels.
struct Compiled {
    ptx: PathBuf,
    report: String,
    instructions: String,
}

fn compile_op(root: &Path, out: &Path, nvcc: &Path, op: &str) -> Result<Compiled, String> {
    let tool = |name: &str| nvcc.with_file_name(format!("{name}{}", env::consts::EXE_SUFFIX));
    let nvdisasm = Some(tool("nvdisasm")).filter(|path| path.is_file());
    let is_needed = is_set("SOFTPROMPT_UPDATE_PREBUILT") || is_set("SOFTPROMPT_REQUIRE_NVCC");
    if nvdisasm.is_none() && is_needed {
        return Err(format!("no nvdisasm beside {}: install the package nvidia-cuda-nvdisasm", nvcc.display()));
    }
    let path = out.join(format!("{op}.ptx"));
    let flags = ["-std=c++17", "-O3", "-lineinfo", "-ptx", "-arch=compute_80", "-Werror", "all-warnings", "-o"];
    run(Command::new(nvcc).current_dir(root).args(flags).arg(&path).arg(format!("kernels/{op}.cu")))?;
    let text = read(&path)?;
    let text = normalise(&text, &root.join("kernels"));
    write(&path, &text)?;

    let (mut report, mut instructions) = (String::new(), String::new());
    for (target, version) in TARGETS {
        let (variant, binary) = (out.join(format!("{op}.{target}.ptx")), out.join(format!("{op}.{target}.cubin")));
        let version_line = (format!(".version {PTX_VERSION}\n"), format!(".version {version}\n"));
        let text = text.replacen(&version_line.0, &version_line.1, 1).replacen(
            ".target sm_80",
            &format!(".target {target}"),
            1,
        );
        write(&variant, &text)?;
        let arch = format!("-arch={target}");
        let log = run(Command::new(tool("ptxas")).args(["-v", &arch, "-o"]).arg(&binary).arg(&variant))?;
        report += &format!("== {op} {target}\n");
        for line in log.lines().filter(|line| !line.contains("Compile time")) {
            report += &format!("{}\n", line.trim_end());
        }
        if let Some(nvdisasm) = &nvdisasm {
            instructions += &sass::table(&run(Command::new(nvdisasm).arg("-c").arg(&binary))?, target);
        }
    }
    Ok(Compiled { ptx: path, report, instructions })
}

/// PTX without what differs between machines: the compiler's build, and paths of files. `kernels/x.cuh` is left of a
/// path of ours, `cuda/x.hpp` of one of the toolkit's.
fn normalise(ptx: &str, ours: &Path) -> String {
    let mut text = String::with_capacity(ptx.len());
    for line in ptx.lines().skip_while(|line| line.is_empty() || line.starts_with("//")) {
        let words: Vec<&str> = line.split('"').collect();
        if line.starts_with(".version") {
            text += &format!(".version {PTX_VERSION}");
        } else if let (true, [number, path, ..]) = (line.trim_start().starts_with(".file"), words.as_slice()) {
            let name = path.rsplit(['/', '\\']).next().unwrap_or(path);
            let folder = if ours.join(name).is_file() { "kernels" } else { "cuda" };
            text += &format!("{number}\"{folder}/{name}\"");
        } else {
            text += &without_path_hash(line.trim_end());
        }
        text.push('\n');
    }
    text
}

/// Names of functions that a header keeps to itself hold `INTERNAL_` and eight digits, a hash of where the sources lie;
/// zeros take their place. Names are written as lists of character codes.
fn without_path_hash(line: &str) -> String {
    const INTERNAL: &str = ",73,78,84,69,82,78,65,76,95,";
    const DIGITS: usize = 8;
    let Some((before, after)) = line.split_once(INTERNAL) else { return line.to_owned() };
    let rest: Vec<&str> = after.splitn(DIGITS + 1, ',').collect();
    match rest.as_slice() {
        [digits @ .., rest] if digits.len() == DIGITS => {
            format!("{before}{INTERNAL}{}{rest}", "48,".repeat(DIGITS))
        }
        _ => line.to_owned(),
    }
}

fn read_prebuilt(folder: &Path) -> Result<Kernels, String> {
    Ok(Kernels {
        modules: prebuilt_modules(folder),
        report: read(&folder.join("ptxas.txt"))?,
        instructions: read(&folder.join("sass.txt"))?,
        compiler: read(&folder.join("compiler.txt"))?.trim().to_owned(),
    })
}

fn prebuilt_modules(folder: &Path) -> Vec<(String, PathBuf)> {
    let is_ptx = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "ptx");
    let named = |path: PathBuf| Some((path.file_stem()?.to_str()?.to_owned(), path));
    entries(folder).into_iter().filter(is_ptx).filter_map(named).collect()
}

fn write_prebuilt(folder: &Path, kernels: &Kernels) -> Result<(), String> {
    let failed = |path: &Path, error: std::io::Error| format!("{}: {error}", path.display());
    fs::create_dir_all(folder).map_err(|error| failed(folder, error))?;
    for (_, old) in prebuilt_modules(folder) {
        fs::remove_file(&old).map_err(|error| failed(&old, error))?;
    }
    for (op, path) in &kernels.modules {
        fs::copy(path, folder.join(format!("{op}.ptx"))).map_err(|error| failed(path, error))?;
    }
    write(&folder.join("ptxas.txt"), &kernels.report)?;
    write(&folder.join("sass.txt"), &kernels.instructions)?;
    write(&folder.join("compiler.txt"), &format!("{}\n", kernels.compiler))
}

/// What is in a folder, by name; nothing if it is none.
fn entries(folder: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<_> = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    paths.sort();
    paths
}

fn variable(name: &str) -> Option<String> {
    env::var(name).ok().filter(|value| !value.is_empty())
}

fn is_set(name: &str) -> bool {
    variable(name).is_some_and(|value| value != "0")
}

fn read(path: &Path) -> Result<String, String> {
    fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))
}

fn write(path: &Path, text: &str) -> Result<(), String> {
    fs::write(path, text).map_err(|error| format!("{}: {error}", path.display()))
}

/// What a command prints, if it succeeds.
fn run(command: &mut Command) -> Result<String, String> {
    let output = command.output().map_err(|error| format!("{command:?}: {error}"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    if output.status.success() { Ok(text) } else { Err(format!("{command:?}: {}\n{text}", output.status)) }
}
