//! The comparison with PEFT and torch runs, on tiny models, where Python has them. `SOFTPROMPT_TEST_PYTHON` names the
//! interpreter (default `python3`).

mod common;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn script() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/peers/run.py")
}

/// Runs the smoke rows, unless Python lacks what they need.
fn smoke(out: &Path, binary: &str) -> Option<(Output, String)> {
    let python = std::env::var("SOFTPROMPT_TEST_PYTHON").unwrap_or_else(|_| "python3".into());
    let found = Command::new(&python).args(["-c", "import peft, transformers, torch"]).output();
    if !found.is_ok_and(|output| output.status.success()) {
        common::skip(&format!("{python} has no peft, transformers and torch"));
        return None;
    }
    let mut command = Command::new(&python);
    command
        .arg(script())
        .args(["--smoke", "--rounds", "1", "--threads", "1", "--softprompt", binary, "--out"])
        .arg(out);
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    Some((output, said))
}

#[test]
fn peers_agree_and_are_timed() {
    let dir = tempfile::tempdir().unwrap();
    let binary = env!("CARGO_BIN_EXE_softprompt");
    let Some((output, said)) = smoke(dir.path(), binary) else { return };
    assert!(output.status.success(), "{said}");
    for (row, peers) in [
        ("llama-prompt", &["peft", "shared"][..]),
        ("gpt2-prompt", &["peft", "shared"]),
        ("t5-prompt", &["peft"]),
        ("llama-full", &["full"]),
    ] {
        let file = dir.path().join(format!("smoke-{row}.json"));
        let result: serde_json::Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
        for side in peers.iter().chain(&["ours"]) {
            assert!(result["seconds"][side][0].as_f64().unwrap() > 0.0, "{row}: {side}");
            assert!(result["losses"][side].as_f64().unwrap() > 0.0, "{row}: {side}");
        }
        assert!(result["memory"]["ours"]["device_above_weights"].as_u64().unwrap() > 0, "{row}");
        let machine_paths = result.to_string().contains(dir.path().to_str().unwrap());
        assert!(!machine_paths, "{row}: a path of this machine is in the result");
    }
    let table = std::fs::read_to_string(dir.path().join("table.md")).unwrap();
    assert!(table.contains("PEFT : softprompt") && table.contains("torch : softprompt"), "{table}");

    let (output, said) = smoke(dir.path(), binary).unwrap();
    assert!(output.status.success() && said.matches("done before").count() == 4, "{said}");
}

#[test]
fn a_missing_program_is_told_on_one_line() {
    let dir = tempfile::tempdir().unwrap();
    let nowhere = dir.path().join("nowhere");
    let Some((output, said)) = smoke(dir.path(), nowhere.to_str().unwrap()) else { return };
    assert!(!output.status.success() && said.lines().count() == 1 && said.contains("cargo build --release"), "{said}");
}
