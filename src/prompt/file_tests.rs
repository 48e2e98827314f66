//! Tests of the prompt file formats.

use super::*;
use crate::prompt::{PeftConfig, PeftInit, PeftTask};
use std::fs;

const GOLDEN: [&str; 4] = ["gpt2", "llama", "llama_untied", "qwen2"];

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name).join("adapter_after5_f32")
}

fn prompt(values: Values) -> PromptFile {
    let meta = BTreeMap::from([("base_model".to_owned(), "m".to_owned()), ("step".to_owned(), "7".to_owned())]);
    PromptFile::new(2, values.len() / 2, values, meta).unwrap()
}

fn f32s() -> PromptFile {
    prompt(Values::F32(vec![1.0 / 3.0, -0.0, f32::MIN_POSITIVE / 4.0, f32::MAX, 5.0, -6.5]))
}

fn f64s() -> PromptFile {
    prompt(Values::F64(vec![1.0 / 3.0, -0.0, 5e-324, 1e300, 5.0, -6.5]))
}

fn bits(prompt: &PromptFile) -> (usize, usize, Vec<u8>) {
    (prompt.rows, prompt.cols, prompt.values.to_le_bytes())
}

#[test]
fn pefts_own_adapters_are_read_and_written_back_byte_for_byte() {
    let dir = tempfile::tempdir().unwrap();
    for name in GOLDEN {
        let theirs = golden(name);
        let prompt = PromptFile::read(&theirs).unwrap();
        assert_eq!((prompt.rows, prompt.cols), (5, 64));
        assert_eq!(prompt.meta["base_model_name_or_path"], name);
        let raw = fs::read(theirs.join(peft::TENSORS)).unwrap();
        assert_eq!(prompt.values.to_le_bytes(), raw[raw.len() - 5 * 64 * 4..]);
        // A separate run of PEFT's in f32 ended within its rounding of the adapter's.
        let after = TensorFile::read(theirs.parent().unwrap().join("golden.safetensors")).unwrap();
        let after: Vec<f64> = after.get("main.prompt_after5_f32").unwrap().values.to_vec();
        let apart = prompt.values.to_vec::<f64>().iter().zip(&after).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        assert!(apart < 1e-5, "{name}: {apart}");
        assert_eq!(bits(&prompt), bits(&PromptFile::read(theirs.join(peft::TENSORS)).unwrap()));

        let ours = dir.path().join(name);
        let config = PeftConfig {
            base_model_name_or_path: Some(name.into()),
            num_layers: Some(2),
            num_attention_heads: Some(4),
            ..PeftConfig::default()
        };
        prompt.write_peft_adapter(&ours, &config).unwrap();
        for file in [peft::CONFIG, peft::TENSORS] {
            assert_eq!(fs::read(ours.join(file)).unwrap(), fs::read(theirs.join(file)).unwrap(), "{name}/{file}");
        }
    }
}

#[test]
fn an_adapter_directory_with_other_files_is_not_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a");
    let config = PeftConfig { task_type: PeftTask::Seq2SeqLm, init: PeftInit::SampleVocab, ..PeftConfig::default() };
    f32s().write_peft_adapter(&path, &config).unwrap();
    f32s().write_peft_adapter(&path, &config).unwrap();
    assert_eq!(PromptFile::read(&path).unwrap().meta["task_type"], "SEQ_2_SEQ_LM");
    fs::write(path.join("notes.txt"), "dear").unwrap();
    let error = f32s().write_peft_adapter(&path, &config).unwrap_err();
    assert_eq!(error.exit_code(), 2);
    assert!(error.to_string().contains("notes.txt"), "{error}");
    assert_eq!(fs::read(path.join("notes.txt")).unwrap(), b"dear");
    let error = f64s().write_peft_adapter(dir.path().join("b"), &config).unwrap_err();
    assert!(error.to_string().contains("row 1, column 0"), "{error}");
    assert!(!dir.path().join("b").exists());
}

fn adapter(dir: &Path, edit: impl Fn(&mut serde_json::Value), rows: usize) -> Result<PromptFile> {
    let config = PeftConfig { init: PeftInit::Text { text: "t".into(), tokenizer: "k".into() }, ..Default::default() };
    let values = Values::F32((0..rows * 3).map(|i| i as f32).collect());
    let path = dir.join("edited");
    PromptFile::new(rows, 3, values, BTreeMap::new()).unwrap().write_peft_adapter(&path, &config).unwrap();
    let mut json: serde_json::Value = serde_json::from_slice(&fs::read(path.join(peft::CONFIG)).unwrap()).unwrap();
    edit(&mut json);
    fs::write(path.join(peft::CONFIG), json.to_string()).unwrap();
    PromptFile::read(&path)
}

#[test]
fn of_t5s_two_submodules_the_first_is_kept_and_it_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let two = |j: &mut serde_json::Value| {
        j["num_transformer_submodules"] = 2.into();
        j["num_virtual_tokens"] = 2.into();
    };
    let prompt = adapter(dir.path(), two, 4).unwrap();
    assert_eq!((prompt.rows, prompt.cols), (2, 3));
    assert_eq!(prompt.values, Values::F32(vec![0.0, 1.0, 2.0, 3.0, 4.0, 5.0]));
    assert!(prompt.meta["rows_kept"].starts_with("rows 0..2 of 4"), "{:?}", prompt.meta);
    assert!(adapter(dir.path(), two, 2).is_err());
}

/// PEFT's own adapters of T5: `[2P, d]` and `[P, d]`, written after the same steps from the same prompt.
#[test]
fn t5_adapters_of_one_and_two_submodules_are_the_same_prompt() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    for name in ["t5_v10", "t5_v11"] {
        let [two, one] = ["adapter_after5_f32", "adapter_one_submodule"]
            .map(|adapter| PromptFile::read(golden.join(name).join(adapter)).unwrap());
        assert_eq!((two.rows, two.cols, one.rows, one.cols), (5, 16, 5, 16));
        assert_eq!(bits(&two), bits(&one));
        assert!(two.meta["rows_kept"].starts_with("rows 0..5 of 10") && !one.meta.contains_key("rows_kept"));
        for prompt in [&two, &one] {
            assert_eq!(PeftTask::of_prompt(prompt), Some(PeftTask::Seq2SeqLm));
        }

        // Through our own file and back into an adapter, which has one submodule.
        let dir = tempfile::tempdir().unwrap();
        two.write(dir.path().join(PROMPT_FILE)).unwrap();
        let ours = PromptFile::read(dir.path()).unwrap();
        let task_type = PeftTask::of_prompt(&ours).unwrap();
        let config = PeftConfig { task_type, num_layers: Some(2), num_attention_heads: Some(4), ..Default::default() };
        ours.write_peft_adapter(dir.path().join("a"), &config).unwrap();
        assert_eq!(bits(&PromptFile::read(dir.path().join("a")).unwrap()), bits(&one));
        let json = |path: &Path| -> serde_json::Value {
            serde_json::from_slice(&fs::read(path.join(peft::CONFIG)).unwrap()).unwrap()
        };
        let (ours, theirs) = (json(&dir.path().join("a")), json(&golden.join(name).join("adapter_one_submodule")));
        let keys = |json: &serde_json::Value| json.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
        assert_eq!(keys(&ours), keys(&theirs));
        for key in ["task_type", "num_transformer_submodules", "num_virtual_tokens", "token_dim", "num_layers"] {
            assert_eq!(ours[key], theirs[key], "{key}");
        }
    }
}

#[test]
fn a_prompt_that_peft_would_put_elsewhere_is_not_written_for_it() {
    let dir = tempfile::tempdir().unwrap();
    let config = PeftConfig { task_type: PeftTask::Seq2SeqLm, ..PeftConfig::default() };
    for (key, value, fits) in [
        ("prompt_on", "encoder", true),
        ("prompt_on", "both", false),
        ("prompt_on", "decoder", false),
        ("prompt_mask", "full", true),
        ("prompt_mask", "prompt_only", false),
    ] {
        let mut prompt = f32s();
        prompt.meta.insert(key.into(), value.into());
        let written = prompt.write_peft_adapter(dir.path().join("a"), &config);
        match written {
            Ok(()) => assert!(fits, "{key} {value}"),
            Err(error) => {
                assert!(!fits && error.exit_code() == 2, "{error}");
                assert!(error.to_string().starts_with(key) && error.to_string().contains(value), "{error}");
            }
        }
    }
}

#[test]
fn adapters_that_are_not_what_they_say_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let message = |edit: &dyn Fn(&mut serde_json::Value)| {
        let error = adapter(dir.path(), edit, 2).unwrap_err();
        assert_eq!(error.exit_code(), 4, "{error}");
        error.to_string()
    };
    assert!(message(&|j| j["peft_type"] = "LORA".into()).contains("\"LORA\""));
    assert!(message(&|j| j["peft_type"] = serde_json::Value::Null).contains("peft_type"));
    assert!(message(&|j| j["num_virtual_tokens"] = 3.into()).contains("[3, 3]"));
    assert!(message(&|j| j["num_virtual_tokens"] = u64::MAX.into()).contains("prompt_embeddings"));
    assert!(message(&|j| j["num_transformer_submodules"] = 0.into()).contains("num_transformer_submodules"));
    assert!(message(&|j| j["token_dim"] = "3".into()).contains("token_dim"));
    assert!(message(&|j| *j = serde_json::json!([])).contains("a JSON object"));
    let edited = dir.path().join("edited");
    fs::write(edited.join(peft::CONFIG), "{\n\"peft_type\": ").unwrap();
    assert!(PromptFile::read(&edited).unwrap_err().to_string().contains("adapter_config.json:2"));
}

#[test]
fn a_pickled_adapter_is_refused_with_the_way_out() {
    let dir = tempfile::tempdir().unwrap();
    f32s().write_peft_adapter(dir.path().join("a"), &PeftConfig::default()).unwrap();
    fs::rename(dir.path().join("a").join(peft::TENSORS), dir.path().join("a/adapter_model.bin")).unwrap();
    let error = PromptFile::read(dir.path().join("a")).unwrap_err().to_string();
    assert!(error.contains("pickle") && error.contains("safe_serialization"), "{error}");
    fs::write(dir.path().join("p.pt"), b"PK\x03\x04....").unwrap();
    assert!(PromptFile::read(dir.path().join("p.pt")).unwrap_err().to_string().contains("pickle"));
}

#[test]
fn every_format_keeps_the_bits_and_the_type() {
    let dir = tempfile::tempdir().unwrap();
    for prompt in [f32s(), f64s()] {
        let run = dir.path().join("run");
        prompt.write(run.join(PROMPT_FILE)).unwrap();
        for path in [run.clone(), run.join(PROMPT_FILE)] {
            let read = PromptFile::read(&path).unwrap();
            assert_eq!(bits(&read), bits(&prompt));
            assert_eq!((read.meta["step"].as_str(), read.source()), ("7", Some(path.as_path())));
            assert_eq!(read.meta["format"], "softprompt");
        }
        prompt.write_safetensors(dir.path().join("e.safetensors")).unwrap();
        assert_eq!(bits(&PromptFile::read(dir.path().join("e.safetensors")).unwrap()), bits(&prompt));
        prompt.write_npy(dir.path().join("e.npy")).unwrap();
        let npy = PromptFile::read(dir.path().join("e.npy")).unwrap();
        assert_eq!((bits(&npy), npy.meta["format"].as_str()), (bits(&prompt), "npy"));
    }
}

#[test]
fn a_header_of_any_length_is_read() {
    let dir = tempfile::tempdir().unwrap();
    for length in (0..300).step_by(8) {
        let mut prompt = f32s();
        prompt.meta.insert("note".into(), "x".repeat(length));
        prompt.write(dir.path().join(PROMPT_FILE)).unwrap();
        assert_eq!(bits(&PromptFile::read(dir.path()).unwrap()), bits(&prompt), "{length}");
    }
}

#[test]
fn a_value_that_is_not_finite_is_named_by_row_and_column() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("p.npy");
    fs::write(&path, npy::to_bytes(2, 2, &Values::F32(vec![0.0, 1.0, 2.0, f32::NAN]))).unwrap();
    let error = PromptFile::read(&path).unwrap_err();
    assert!(error.to_string().contains("NaN in row 1, column 1"), "{error}");
    assert!(error.to_string().contains("p.npy"), "{error}");
}

#[test]
fn shapes_that_are_no_prompt_and_unclear_files_are_refused() {
    let tensor = |name: &str, shape: &[usize]| NamedTensor {
        name: name.into(),
        shape: shape.to_vec(),
        values: Values::F32(vec![1.0; shape.iter().product()]),
    };
    let dir = tempfile::tempdir().unwrap();
    let read = |tensors: Vec<NamedTensor>| {
        let path = dir.path().join("p.safetensors");
        let file = TensorFile { tensors, ..TensorFile::default() };
        fs::write(&path, file.to_bytes().unwrap()).unwrap();
        PromptFile::read(&path)
    };
    assert!(read(vec![tensor("prompt_embeddings", &[1, 2]), tensor("step", &[1])]).is_ok());
    for (tensors, part) in [
        (vec![tensor("prompt", &[4])], "two dimensions"),
        (vec![tensor("prompt", &[1, 2, 2])], "two dimensions"),
        (vec![tensor("prompt", &[0, 2])], "at least one row"),
        (vec![tensor("prompt", &[2, 0])], "at least one row"),
        (vec![tensor("weight", &[2, 2])], "none"),
        (vec![tensor("prompt", &[1, 2]), tensor("prompt_embeds", &[1, 2])], "prompt and prompt_embeds"),
    ] {
        let error = read(tensors).unwrap_err();
        assert_eq!(error.exit_code(), 4);
        assert!(error.to_string().contains(part), "{error}");
    }
    for missing in [dir.path().to_path_buf(), dir.path().join("none")] {
        assert_eq!(PromptFile::read(missing).unwrap_err().exit_code(), 4);
    }
}

#[test]
fn a_prompt_that_was_altered_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(PROMPT_FILE);
    f32s().write(&path).unwrap();
    let mut bytes = fs::read(&path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&path, bytes).unwrap();
    let error = PromptFile::read(&path).unwrap_err().to_string();
    assert!(error.contains("altered"), "{error}");
}

#[test]
fn a_width_that_does_not_fit_names_both_and_the_model() {
    let prompt = f32s();
    prompt.expect_width(3, "m").unwrap();
    let error = prompt.expect_width(576, "SmolLM2").unwrap_err();
    assert_eq!(error.exit_code(), 4);
    assert_eq!(
        error.to_string(),
        "prompt: expected width 576, that of SmolLM2, got width 3 (the prompt was made for m)"
    );
}
