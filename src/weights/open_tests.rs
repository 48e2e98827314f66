use super::*;
use crate::weights::{Format, StoredTensor};
use std::fs;

fn write(path: &Path, tensors: &[(&str, &str, usize)]) {
    let mut json = String::new();
    let mut data = Vec::new();
    for (i, (name, dtype, count)) in tensors.iter().enumerate() {
        let size = if *dtype == "F32" { 4 } else { 1 };
        let comma = if i == 0 { "" } else { "," };
        let offsets = format!("[{},{}]", data.len(), data.len() + count * size);
        json += &format!(r#"{comma}"{name}":{{"dtype":"{dtype}","shape":[{count}],"data_offsets":{offsets}}}"#);
        (0..*count).for_each(|n| data.extend(&(n as f32).to_le_bytes()[..size]));
    }
    let json = format!("{{{json}}}");
    let json = format!("{json:0$}", json.len().next_multiple_of(8));
    fs::write(path, [&(json.len() as u64).to_le_bytes()[..], json.as_bytes(), &data].concat()).unwrap();
}

fn index(path: &Path, map: &str) {
    fs::write(path.join(INDEX), format!(r#"{{"metadata":{{"total_size":1}},"weight_map":{{{map}}}}}"#)).unwrap();
}

#[track_caller]
fn refused(path: &Path, says: &str) {
    let error = Weights::open(path).unwrap_err();
    assert_eq!(error.exit_code(), 4, "{error}");
    assert!(error.to_string().contains(says), "{error}");
}

#[test]
fn a_directory_a_file_and_shards_open_alike() {
    let dir = tempfile::tempdir().unwrap();
    let tensors = [("model.a", "F32", 4), ("model.odd", "F8_E4M3", 2), ("model.b", "F32", 3)];
    write(&dir.path().join(SINGLE), &tensors);
    for path in [dir.path().to_path_buf(), dir.path().join(SINGLE)] {
        let weights = Weights::open(&path).unwrap();
        assert_eq!(weights.names().collect::<Vec<_>>(), ["model.a", "model.b", "model.odd"]);
        assert_eq!(weights.get("model.a").unwrap().as_slice::<f32>(), Some(&[0.0, 1.0, 2.0, 3.0][..]));
        // Two bytes off: not in place, but readable.
        let b: StoredTensor = weights.get("model.b").unwrap();
        assert!(b.as_slice::<f32>().is_none() && b.format() == Format::F32);
        let mut out = [0f32; 2];
        b.widen(1, &mut out);
        assert_eq!(out, [1.0, 2.0]);
    }
    fs::rename(dir.path().join(SINGLE), dir.path().join("one.safetensors")).unwrap();
    write(&dir.path().join("two.safetensors"), &[("model.c", "F32", 1), ("left.out", "F32", 1)]);
    index(dir.path(), r#""model.a":"one.safetensors","model.c":"two.safetensors""#);
    let weights = Weights::open(dir.path()).unwrap();
    assert_eq!(weights.names().collect::<Vec<_>>(), ["model.a", "model.c"]);
    assert!(weights.get("model.c").unwrap().path().ends_with("two.safetensors"));
    assert!(Weights::open(&dir.path().join(INDEX)).is_ok());
}

#[test]
fn asking_for_what_is_not_there_or_not_readable() {
    let dir = tempfile::tempdir().unwrap();
    write(&dir.path().join(SINGLE), &[("model.norm.weight", "F32", 4), ("odd", "F8_E4M3", 2)]);
    let weights = Weights::open(dir.path()).unwrap();
    let text = weights.get("norm.weight").unwrap_err().to_string();
    assert!(text.contains("similar names in it: model.norm.weight"), "{text}");
    let text = weights.get("lm_head.bias").unwrap_err().to_string();
    assert!(text.contains("2 tensors, from model.norm.weight to odd"), "{text}");
    let text = weights.get("odd").unwrap_err().to_string();
    assert!(text.contains("model.safetensors: odd: expected one of F64") && text.contains("got F8_E4M3"), "{text}");
    assert!(weights.find("odd").is_none() && weights.optional("odd").is_err());
    assert!(weights.optional("no").unwrap().is_none() && weights.find("model.norm.weight").is_some());
}

#[test]
fn an_index_that_lies() {
    let dir = tempfile::tempdir().unwrap();
    write(&dir.path().join("one.safetensors"), &[("a", "F32", 1)]);
    write(&dir.path().join("two.safetensors"), &[("b", "F32", 1), ("a", "F32", 1)]);
    for (map, says) in [
        (r#""a":"one.safetensors","z":"one.safetensors""#, "nowhere"),
        (r#""a":"one.safetensors","b":"two.safetensors""#, "one shard"),
        (r#""a":"one.safetensors","a":"two.safetensors""#, "a twice"),
        (r#""a":"../one.safetensors""#, "beside the index"),
        (r#""a":"/etc/passwd""#, "beside the index"),
        (r#""a":"..""#, "beside the index"),
        (r#""a":"""#, "beside the index"),
        (r#""a":"gone.safetensors""#, "gone.safetensors"),
        (r#""a":7"#, "weight_map"),
    ] {
        index(dir.path(), map);
        refused(dir.path(), says);
    }
}

#[test]
fn what_is_no_model() {
    let dir = tempfile::tempdir().unwrap();
    refused(dir.path(), "none of them");
    refused(&dir.path().join("nothing"), "nothing there");
    fs::write(dir.path().join("pytorch_model.bin"), "x").unwrap();
    refused(dir.path(), "converted to safetensors");
    refused(&dir.path().join("pytorch_model.bin"), ".bin");
    fs::write(dir.path().join("empty.gguf"), "").unwrap();
    refused(dir.path(), "empty file");
    fs::write(dir.path().join("other.gguf"), "").unwrap();
    refused(dir.path(), "name the file itself");
    fs::create_dir(dir.path().join(SINGLE)).unwrap();
    refused(dir.path(), "a directory");
}
