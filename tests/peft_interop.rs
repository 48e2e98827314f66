//! What PEFT itself says, where Python has it: it reads the adapters that are written here, and agrees about models that
//! are not in the golden folder. `SOFTPROMPT_TEST_PYTHON` names the interpreter (default `python3`).

mod common;

use softprompt::prompt::{PeftConfig, PeftTask, PromptFile};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

fn tests() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests")
}

/// Runs a script of this folder, unless PEFT is missing.
fn run(script: &str, arguments: &[&OsStr]) {
    let python = std::env::var("SOFTPROMPT_TEST_PYTHON").unwrap_or_else(|_| "python3".into());
    let found = Command::new(&python).args(["-c", "import peft, transformers, torch"]).output();
    if !found.is_ok_and(|output| output.status.success()) {
        return common::skip(&format!("{python} has no peft, transformers and torch"));
    }
    let output = Command::new(&python).arg(tests().join(script)).args(arguments).output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{out}{err}");
    println!("{out}");
}

#[test]
fn peft_loads_our_adapters() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["gpt2", "llama", "llama_untied", "qwen2", "t5_v10", "t5_v11"] {
        let prompt = PromptFile::read(tests().join("golden").join(name).join("adapter_after5_f32")).unwrap();
        let task_type = PeftTask::of_prompt(&prompt).unwrap();
        let known =
            PeftConfig { task_type, num_layers: Some(2), num_attention_heads: Some(4), ..PeftConfig::default() };
        // An export without a model knows neither.
        let config = if name == "llama" { PeftConfig::default() } else { known };
        prompt.write_peft_adapter(dir.path().join(name), &config).unwrap();
    }
    run("peft_interop.py", &[dir.path().as_os_str()]);
}

#[test]
fn peft_agrees_about_random_models() {
    let dir = tempfile::tempdir().unwrap();
    let flags = ["--binary", env!("CARGO_BIN_EXE_softprompt"), "--work"].map(OsStr::new);
    for kind in [&["--models", "20"][..], &["--models", "12", "--t5"]] {
        let kind: Vec<&OsStr> = kind.iter().map(OsStr::new).collect();
        run("peft_random.py", &[&kind[..], &flags[..], &[dir.path().as_os_str()]].concat());
    }
}
