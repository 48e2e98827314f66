use super::*;

fn file(json: &str, data: usize) -> Vec<u8> {
    let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
    bytes.extend(json.as_bytes());
    bytes.extend(std::iter::repeat_n(7, data));
    bytes
}

fn parsed(json: &str, data: usize) -> Result<Header> {
    parse(Path::new("m.safetensors"), &file(json, data))
}

#[track_caller]
fn refused(json: &str, data: usize, says: &str) {
    let error = parsed(json, data).unwrap_err();
    assert_eq!(error.exit_code(), 4);
    let text = error.to_string();
    assert!(text.starts_with("m.safetensors: ") && text.contains(says), "{text}");
}

#[test]
fn a_header_is_listed_in_the_order_of_the_bytes() {
    let json = r#"{"__metadata__":{"format":"pt"},
        "b":{"dtype":"F8_E4M3","shape":[3],"data_offsets":[8,11]},
        "new":{"dtype":"F3","shape":[1000],"data_offsets":[11,12]},
        "a":{"dtype":"BF16","shape":[2,2],"data_offsets":[0,8]},
        "none":{"dtype":"F32","shape":[0,5],"data_offsets":[8,8]}}   "#;
    let header = parsed(json, 12).unwrap();
    assert_eq!(header.metadata["format"], "pt");
    let names: Vec<_> = header.tensors.iter().map(|t| t.name.as_str()).collect();
    assert_eq!(names, ["a", "none", "b", "new"]);
    assert_eq!((header.tensors[0].format, header.tensors[2].format), (Some(Format::BF16), None));
    assert_eq!(header.tensors[0].shape, [2, 2]);
    assert_eq!(header.tensors[0].range.len(), 8);
    assert!(parsed("{}", 0).unwrap().tensors.is_empty());
    let scalar = r#"{"s":{"dtype":"F32","shape":[],"data_offsets":[0,4]}}"#;
    assert!(parsed(scalar, 4).unwrap().tensors[0].shape.is_empty());
}

#[test]
fn headers_that_do_not_fit_the_file() {
    for bytes in [vec![], vec![1, 2, 3], u64::MAX.to_le_bytes().to_vec(), file("{}", 0)[..9].to_vec()] {
        let error = parse(Path::new("m.safetensors"), &bytes).unwrap_err();
        assert!(error.to_string().contains("incomplete download"), "{error}");
    }
    refused("", 0, "JSON");
    refused("not json", 0, "JSON");
    refused("[]", 0, "JSON");
    refused("{\"a\":\u{0}}", 0, "JSON");
    refused(&"[".repeat(100_000), 0, "JSON");
    refused(&format!("{{\"a\":{}", "{\"x\":".repeat(100_000)), 0, "JSON");
    let mut latin = file("{\"a\":1}", 0);
    latin[10] = 0xff;
    assert!(parse(Path::new("m.safetensors"), &latin).is_err());
}

#[test]
fn a_name_stands_only_once() {
    let one = r#""a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}"#;
    refused(&format!("{{{one},{one}}}"), 4, "a twice");
    refused(r#"{"a":{"dtype":"F32","dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#, 4, "dtype");
    refused(r#"{"__metadata__":{"k":"1","k":"2"}}"#, 0, "k twice");
    refused(r#"{"__metadata__":{},"__metadata__":{}}"#, 0, "twice");
    refused(r#"{"__metadata__":{"k":1}}"#, 0, "string");
}

#[test]
fn offsets_cover_the_data_once() {
    let two = |a: &str, b: &str| {
        format!(
            r#"{{"a":{{"dtype":"U8","shape":[4],"data_offsets":{a}}},"b":{{"dtype":"U8","shape":[4],"data_offsets":{b}}}}}"#
        )
    };
    assert!(parsed(&two("[0,4]", "[4,8]"), 8).is_ok());
    refused(&two("[0,4]", "[2,6]"), 6, "two tensors");
    refused(&two("[0,4]", "[0,4]"), 4, "two tensors");
    refused(&two("[0,4]", "[5,9]"), 9, "no tensor");
    refused(&two("[1,5]", "[5,9]"), 9, "no tensor");
    refused(&two("[0,4]", "[4,8]"), 7, "offsets within 0..7");
    refused(&two("[0,4]", "[4,8]"), 9, "belong to no tensor");
    refused(&two("[4,0]", "[4,8]"), 8, "offsets");
    refused(&two("[0,4]", "[18446744073709551612,18446744073709551615]"), 8, "offsets");
    refused(&two("[0,4]", "[-4,8]"), 8, "JSON");
    refused(&two("[0,4,4]", "[4,8]"), 8, "JSON");
}

#[test]
fn bytes_are_what_shape_and_dtype_need() {
    let one =
        |dtype: &str, shape: &str| format!(r#"{{"a":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[0,8]}}}}"#);
    assert!(parsed(&one("F32", "[2]"), 8).is_ok());
    assert!(parsed(&one("F4", "[4,4]"), 8).is_ok());
    refused(&one("F32", "[3]"), 8, "12 bytes");
    refused(&one("F32", "[]"), 8, "4 bytes");
    refused(&one("F4", "[15]"), 8, "whole number");
    refused(&one("U8", "[4294967296,4294967296]"), 8, "fits in memory");
    refused(&one("F64", "[9223372036854775808]"), 8, "bytes");
    refused(&one("XX", "[4294967296,4294967296]"), 8, "fits in memory");
    refused(&one("F32", "[-1]"), 8, "JSON");
    refused(&one("F32", "[1.5]"), 8, "JSON");
}

#[test]
fn our_reading_agrees_with_the_safetensors_crate() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/llama/model.safetensors");
    let Ok(bytes) = std::fs::read(&golden) else { return };
    let theirs = ::safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let ours = header(&golden).unwrap();
    assert_eq!(ours.tensors.len(), theirs.len());
    for tensor in &ours.tensors {
        let other = theirs.tensor(&tensor.name).unwrap();
        assert_eq!((&tensor.shape[..], &bytes[tensor.range.clone()]), (other.shape(), other.data()));
    }
}
