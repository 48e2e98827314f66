//! Imports point down only. The floors are those of ARCHITECTURE.md; a module may use what stands below it.

use std::path::{Path, PathBuf};

/// From the ground up; modules on one line know nothing of each other unless the line says so.
const FLOORS: &[&[&str]] = &[
    &["error", "dtype", "values", "plot"],
    &["storage", "device", "layout"],
    &["tensor", "tensorfile", "indices"],
    &["tape", "weights"],
    &["ops"],
    &["nn", "data", "optim", "metrics"],
    &["models"],
    &["step", "flops", "account", "prompt", "config"],
    &["checkpoint", "generate", "eval", "inspect"],
    &["train", "bench", "profile", "report", "experiments"],
    &["cli"],
];

/// What may reach up, and why.
const EXCEPTIONS: &[(&str, &str)] = &[
    // An element type brings its vectorised functions.
    ("dtype", "ops"),
    // Tensors are added on the same loops as everything else.
    ("tensor", "ops"),
];

fn floor_of(module: &str) -> Option<usize> {
    FLOORS.iter().position(|floor| floor.contains(&module))
}

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

fn all_sources() -> (PathBuf, Vec<PathBuf>) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&root, &mut files);
    (root, files)
}

/// The text up to the unit tests, which may use anything.
fn code(path: &Path) -> String {
    let text = std::fs::read_to_string(path).unwrap();
    text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default().to_string()
}

fn module_of(path: &Path, root: &Path) -> String {
    let relative = path.strip_prefix(root).unwrap();
    let first = relative.components().next().unwrap().as_os_str().to_string_lossy().into_owned();
    first.trim_end_matches(".rs").to_string()
}

/// The modules named in `crate::…` paths of a line, braces included.
fn imports(line: &str) -> Vec<String> {
    let mut found = Vec::new();
    for part in line.split("crate::").skip(1) {
        let inner = part.strip_prefix('{').map_or(part, |group| group.split('}').next().unwrap_or(group));
        for item in if part.starts_with('{') { inner.split(", ").collect() } else { vec![inner] } {
            let name: String = item.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
            found.push(name);
        }
    }
    found
}

#[test]
fn imports_point_down() {
    let (root, files) = all_sources();
    assert!(files.len() > 50, "the sources are not where this test looks");
    let mut climbing = Vec::new();
    for path in files {
        let module = module_of(&path, &root);
        if ["lib", "main"].contains(&module.as_str()) || path.to_string_lossy().ends_with("tests.rs") {
            continue;
        }
        let floor = floor_of(&module).unwrap_or_else(|| panic!("{module} stands on no floor: add it to FLOORS"));
        for (number, line) in code(&path).lines().enumerate().filter(|(_, line)| !line.trim_start().starts_with("//")) {
            for import in imports(line) {
                let Some(target) = floor_of(&import) else { continue };
                let excepted = EXCEPTIONS.contains(&(module.as_str(), import.as_str()));
                if import != module && target > floor && !excepted {
                    climbing.push(format!("{}:{}: {module} uses {import}", path.display(), number + 1));
                }
            }
        }
    }
    assert!(climbing.is_empty(), "imports that climb:\n{}", climbing.join("\n"));
}

#[test]
fn an_op_never_uses_another_op_and_the_tape_names_none() {
    let (root, files) = all_sources();
    let ops: Vec<String> = std::fs::read_dir(root.join("ops"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_dir())
        .map(|path| path.file_name().unwrap().to_string_lossy().into_owned())
        // Products and sums over rows are no ops: several ops are made of them.
        .filter(|name| name != "gemm" && name != "columns")
        .collect();
    assert!(ops.len() >= 10);
    // The functions themselves are shared: a gated MLP applies an activation.
    let shared = [("gated", "activation")];
    for path in &files {
        let relative = path.strip_prefix(&root).unwrap();
        let parts: Vec<String> = relative.iter().map(|part| part.to_string_lossy().into_owned()).collect();
        let text = code(path);
        if parts[0] == "ops" && parts.len() > 2 {
            for other in ops.iter().filter(|other| **other != parts[1] && !shared.contains(&(&parts[1], other))) {
                let uses = [format!("ops::{other}::"), format!("super::{other}::"), format!("super::super::{other}")];
                let found = uses.iter().find(|used| text.contains(used.as_str()));
                assert!(found.is_none(), "{}: the op uses {other}", path.display());
            }
        }
        if parts[0] == "tape.rs" {
            assert!(!text.contains("crate::ops"), "tape.rs names an op");
        }
    }
}

#[test]
fn unsafe_code_says_why_and_stays_at_the_bottom() {
    let (root, files) = all_sources();
    for path in files {
        let text = std::fs::read_to_string(&path).unwrap();
        let module = module_of(&path, &root);
        let lines: Vec<&str> = text.lines().collect();
        for (number, _) in lines.iter().enumerate().filter(|(_, line)| line.contains("unsafe {")) {
            let launches = module == "ops" && path.file_name().is_some_and(|name| name == "cuda.rs");
            let is_bottom = ["device", "weights", "cli"].contains(&module.as_str());
            assert!(is_bottom || launches, "{}: unsafe code", path.display());
            let before = &lines[number.saturating_sub(6)..=number];
            assert!(before.iter().any(|line| line.contains("SAFETY")), "{}:{}: no SAFETY", path.display(), number + 1);
        }
    }
}
