//! PEFT reads the adapters that are written here: by `peft_interop.py`, where Python has PEFT.
//!
//! `SOFTPROMPT_TEST_PYTHON` names the interpreter (default `python3`). Without PEFT the test says so and passes, unless
//! `SOFTPROMPT_TEST_NO_SKIP` is set.

use softprompt::prompt::{PeftConfig, PromptFile};
use std::path::Path;
use std::process::Command;

#[test]
fn peft_loads_our_adapters() {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    let dir = tempfile::tempdir().unwrap();
    for name in ["gpt2", "llama", "llama_untied", "qwen2"] {
        let prompt = PromptFile::read(tests.join("golden").join(name).join("adapter_after5_f32")).unwrap();
        let config = PeftConfig { num_layers: Some(2), num_attention_heads: Some(4), ..PeftConfig::default() };
        prompt.write_peft_adapter(dir.path().join(name), &config).unwrap();
    }
    let python = std::env::var("SOFTPROMPT_TEST_PYTHON").unwrap_or_else(|_| "python3".into());
    let found = Command::new(&python).args(["-c", "import peft, transformers, torch"]).output();
    if !found.is_ok_and(|output| output.status.success()) {
        assert!(std::env::var_os("SOFTPROMPT_TEST_NO_SKIP").is_none(), "{python} has no PEFT, and skips are failures");
        eprintln!("SKIPPED: {python} has no peft, transformers and torch");
        return;
    }
    let output = Command::new(&python).arg(tests.join("peft_interop.py")).arg(dir.path()).output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{out}{err}");
    println!("{out}");
}
