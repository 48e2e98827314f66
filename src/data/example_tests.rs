use super::super::text::testing::{TOY, Toy};
use super::*;

fn load_with(content: &str, options: &ExampleOptions, tokenizer: Option<&dyn Encode>) -> Result<Dataset> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("data.jsonl");
    std::fs::write(&path, content).unwrap();
    Dataset::load(&path, options, tokenizer)
}

fn load(content: &str, options: &ExampleOptions) -> Result<Dataset> {
    load_with(content, options, Some(&TOY))
}

fn refused(content: &str, options: &ExampleOptions) -> String {
    let error = load(content, options).unwrap_err();
    assert_eq!(error.exit_code(), 4, "{error}");
    let text = error.to_string();
    text[text.find("data.jsonl").expect("the file is named")..].to_owned()
}

fn options(max_length: usize, on_long: OnLong) -> ExampleOptions {
    ExampleOptions { max_length, on_long, ..Default::default() }
}

#[test]
fn fields_input_and_target_are_the_default() {
    let data =
        load("{\"input\": \"ab\", \"target\": \"c\"}\n\n{\"input\": \"\", \"target\": \"d\"}\n", &Default::default());
    let data = data.unwrap();
    assert_eq!(
        data.examples,
        [
            Example { input_ids: vec![97, 98], target_ids: vec![1099], line: 1, target_text: Some("c".into()) },
            Example { input_ids: vec![], target_ids: vec![1100], line: 3, target_text: Some("d".into()) },
        ]
    );
    assert_eq!(data.examples[0].tokens(), 3);
    assert_eq!(data.labels(), ["c", "d"]);
    assert_eq!(data.skipped, Skipped::default());
}

#[test]
fn templates_choose_the_fields_and_may_have_none() {
    let options = ExampleOptions {
        template: Some(Template::parse("{x}:").unwrap()),
        target: Some(Template::parse("y").unwrap()),
        ..Default::default()
    };
    let data = load("{\"x\": 7}", &options).unwrap();
    assert_eq!(data.examples[0].input_ids, [55, 58]);
    assert_eq!(data.examples[0].target_ids, [1121]);
    let error = refused("{\"x\": 7}\n{\"z\": 1}", &options);
    assert!(error.starts_with("data.jsonl:2: x: expected this field, got a row with the fields z"), "{error}");
}

#[test]
fn rows_of_ids_need_no_tokenizer_and_mix_with_text() {
    let ids = "{\"input_ids\": [], \"target_ids\": [5, 6], \"target\": \"yes\"}\n";
    let data = load_with(ids, &Default::default(), None).unwrap();
    assert_eq!(data.examples[0].target_ids, [5, 6]);
    assert!(data.examples[0].input_ids.is_empty());
    assert_eq!(data.examples[0].target_text.as_deref(), Some("yes"));
    let mixed = format!("{ids}{{\"input\": \"a\", \"target\": \"b\"}}\n");
    let toy = Toy { bos: Some(1), adds_bos: true, ..TOY };
    let options = ExampleOptions { append_eos: true, ..Default::default() };
    let data = load_with(&mixed, &options, Some(&toy)).unwrap();
    assert_eq!(data.examples[0].target_ids, [5, 6], "ids are taken as they are");
    assert_eq!(data.examples[1].input_ids, [1, 97]);
    assert_eq!(data.examples[1].target_ids, [1098, 2]);
    let error = load_with(&mixed, &Default::default(), None).unwrap_err().to_string();
    assert!(error.contains("data.jsonl:2: expected the fields `input_ids` and `target_ids`"), "{error}");
    assert!(error.contains("fields input, target (give a model with a tokenizer"), "{error}");
}

#[test]
fn bad_ids_are_refused_with_field_and_element() {
    for (row, said) in [
        ("{\"input_ids\": [1]}", "target_ids: expected an array of token ids"),
        ("{\"target_ids\": [1]}", "input_ids: expected an array of token ids"),
        ("{\"input_ids\": [1], \"target_ids\": []}", "target_ids: expected at least one id, got an empty array"),
        ("{\"input_ids\": [1, -2], \"target_ids\": [1]}", "got -2 as element 2"),
        ("{\"input_ids\": [1.5], \"target_ids\": [1]}", "got 1.5 as element 1"),
        ("{\"input_ids\": [4294967296], \"target_ids\": [1]}", "got 4294967296 as element 1"),
        ("{\"input_ids\": [\"1\"], \"target_ids\": [1]}", "got \"1\" as element 1"),
        ("{\"input_ids\": \"1 2\", \"target_ids\": [1]}", "rows of ids need .jsonl"),
        ("{\"input_ids\": null, \"target_ids\": [1]}", "got null"),
    ] {
        let error = refused(row, &Default::default());
        assert!(error.starts_with("data.jsonl:1: ") && error.contains(said), "{error}");
    }
}

#[test]
fn ids_outside_the_vocabulary_are_refused() {
    let options = ExampleOptions { vocab_size: 100, ..Default::default() };
    let error =
        refused("{\"input_ids\": [99], \"target_ids\": [99]}\n{\"input_ids\": [100], \"target_ids\": [1]}", &options);
    assert!(error.starts_with("data.jsonl:2: input_ids: expected ids below the model's vocabulary size 100, got 100"));
    let error = refused("{\"input\": \"a\", \"target\": \"b\"}", &options);
    assert!(error.starts_with("data.jsonl:1: target: expected ids below"), "{error}");
}

#[test]
fn empty_targets_and_tokenizer_errors_are_refused_with_the_line() {
    let error =
        refused("{\"input\": \"a\", \"target\": \"b\"}\n{\"input\": \"a\", \"target\": \"\"}", &Default::default());
    assert!(error.starts_with("data.jsonl:2: target: expected a target of at least one token"), "{error}");
    let error = refused("{\"input\": \"\\u0007\", \"target\": \"b\"}", &Default::default());
    assert!(error.starts_with("data.jsonl:1: input: expected text, got a bell"), "{error}");
}

#[test]
fn long_rows_are_refused_cut_or_left_out() {
    let rows = "{\"input\": \"abcdef\", \"target\": \"x\"}\n{\"input\": \"a\", \"target\": \"x\"}\n";
    let error = refused(rows, &options(4, OnLong::Error));
    assert!(error.starts_with("data.jsonl:1: expected at most 4 tokens, got 6 of input and 1 of target"), "{error}");
    assert!(load(rows, &options(7, OnLong::Error)).is_ok());

    let cut = load(rows, &options(4, OnLong::Truncate)).unwrap();
    assert_eq!(cut.examples[0].input_ids, [100, 101, 102], "the end of the input is kept");
    assert_eq!(cut.examples[0].target_ids, [1120]);
    assert_eq!(cut.examples[1].input_ids, [97]);
    assert_eq!(cut.skipped, Skipped { too_long: 0, truncated: 1 });

    let left = load(rows, &options(4, OnLong::Skip)).unwrap();
    assert_eq!(left.examples.iter().map(|e| e.line).collect::<Vec<_>>(), [2]);
    assert_eq!(left.skipped, Skipped { too_long: 1, truncated: 0 });
    let none = refused(rows, &options(1, OnLong::Skip));
    assert!(none.contains("expected at least one row within max_length, got 2 longer"), "{none}");
}

#[test]
fn a_target_is_never_cut() {
    let row = "{\"input\": \"abc\", \"target\": \"xyz\"}";
    let exact = load(row, &options(3, OnLong::Truncate)).unwrap();
    assert!(exact.examples[0].input_ids.is_empty());
    assert_eq!(exact.examples[0].target_ids.len(), 3);
    let error = refused(row, &options(2, OnLong::Truncate));
    assert!(error.starts_with("data.jsonl:1: target: expected at most 2 tokens, got 3"), "{error}");
    let error = load(row, &options(0, OnLong::Truncate)).unwrap_err();
    assert_eq!(error.exit_code(), 3);
}

#[test]
fn the_beginning_id_survives_a_cut() {
    let toy = Toy { bos: Some(1), adds_bos: true, ..TOY };
    let row = "{\"input\": \"abcdef\", \"target\": \"x\"}";
    let cut =
        |limit| load_with(row, &options(limit, OnLong::Truncate), Some(&toy)).unwrap().examples.remove(0).input_ids;
    assert_eq!(cut(7), [1, 98, 99, 100, 101, 102]);
    assert_eq!(cut(3), [1, 102]);
    assert_eq!(cut(2), [1]);
    assert!(cut(1).is_empty());
}

#[test]
fn the_earliest_error_is_the_one_told() {
    let mut rows = String::new();
    for i in 1..=3 * CHUNK {
        let target = if i == CHUNK + 5 || i > CHUNK + 100 { "" } else { "x" };
        rows.push_str(&format!("{{\"input\": \"a\", \"target\": \"{target}\"}}\n"));
        if i == CHUNK + 50 {
            rows.push_str("broken\n");
        }
    }
    let said = format!("data.jsonl:{}: target", CHUNK + 5);
    for threads in [1, 2, 4] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let error = pool.install(|| refused(&rows, &Default::default()));
        assert!(error.starts_with(&said), "{error}");
    }
}

#[test]
fn order_and_count_hold_over_chunks() {
    let rows: String =
        (0..2 * CHUNK + 3).map(|i| format!("{{\"input_ids\": [{i}], \"target_ids\": [{i}]}}\n")).collect();
    let data = load(&rows, &Default::default()).unwrap();
    assert!(data.examples.iter().enumerate().all(|(i, e)| e.input_ids == [i as u32] && e.line == i as u64 + 1));
    assert_eq!(data.examples.len(), 2 * CHUNK + 3);
    let empty = refused("\n", &Default::default());
    assert!(empty.contains("expected at least one row, got none"), "{empty}");
}
