//! Rows of a data file, whatever its format.

use std::fs::File;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::csv::CsvRows;
use super::json::JsonRows;
use crate::error::Place;
use crate::{Error, Result};

/// One row of a data file.
#[derive(Debug, Clone, PartialEq)]
pub struct Record {
    /// The line it begins on, counted from 1. A CSV row may span several.
    pub line: u64,
    /// Its fields in the order of the file. Every CSV field is a string.
    pub fields: Map<String, Value>,
}

impl Record {
    /// The names of the row's fields as a person reads them, the first dozen of them.
    pub(crate) fn field_names(&self) -> String {
        const SHOWN: usize = 12;
        if self.fields.is_empty() {
            return "none".to_owned();
        }
        let names: Vec<&str> = self.fields.keys().take(SHOWN).map(String::as_str).collect();
        let more = if self.fields.len() > SHOWN { ", …" } else { "" };
        format!("{}{more}", names.join(", "))
    }
}

/// What a value is, as an error names it.
pub(crate) fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

enum Rows {
    Json(JsonRows<File>),
    Csv(CsvRows<File>),
}

/// Reads a data file row by row, in constant memory.
///
/// The format goes by the extension: `.jsonl`, `.ndjson`, `.json-lines` and `.json` hold one JSON object a line;
/// `.csv` (commas) and `.tsv` (tabs) a header row, then rows quoted as RFC 4180 says. Blank lines are passed over, a
/// byte order mark and `\r\n` are understood. A number in JSON is a 64-bit integer or float, as in most readers.
///
/// As an iterator it yields every row or the first error, after which it ends.
pub struct RecordReader {
    path: PathBuf,
    rows: Rows,
    done: bool,
}

impl RecordReader {
    /// Opens `path` and, for CSV, reads its header.
    ///
    /// # Errors
    /// [`Error::Input`] for a path that is not there or not a file, an extension that is not known, or a bad header;
    /// [`Error::Io`] where the system refuses.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let format = Format::of(path)?;
        let file = File::open(path).map_err(|e| Error::io(path, "open", e))?;
        if file.metadata().map_err(|e| Error::io(path, "open", e))?.is_dir() {
            return Err(Error::input(Place::file(path), "a data file", "a directory")
                .hint("name one .jsonl, .csv or .tsv file in it"));
        }
        let rows = match format {
            Format::Json => Rows::Json(JsonRows::new(file)),
            Format::Csv(delimiter) => Rows::Csv(CsvRows::open(file, delimiter).map_err(|e| settle(path, e))?),
        };
        Ok(Self { path: path.to_path_buf(), rows, done: false })
    }
}

impl Iterator for RecordReader {
    type Item = Result<Record>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        let next = match &mut self.rows {
            Rows::Json(rows) => rows.next_row(),
            Rows::Csv(rows) => rows.next_row(),
        };
        let item = next.map_err(|e| settle(&self.path, e)).transpose();
        self.done = !matches!(item, Some(Ok(_)));
        item
    }
}

/// Names the file in an error of a row reader, which does not know it.
fn settle(path: &Path, error: Error) -> Error {
    match error {
        Error::Io { action, source, .. } => Error::io(path, action, source),
        other => other.in_file(path),
    }
}

enum Format {
    Json,
    Csv(u8),
}

impl Format {
    fn of(path: &Path) -> Result<Self> {
        let extension = path.extension().map(|e| e.to_string_lossy().to_ascii_lowercase());
        match extension.as_deref() {
            Some("jsonl" | "ndjson" | "json-lines" | "json") => Ok(Self::Json),
            Some("csv") => Ok(Self::Csv(b',')),
            Some("tsv") => Ok(Self::Csv(b'\t')),
            other => {
                let got = other.map_or("a name without extension".to_owned(), |e| format!("`.{e}`"));
                Err(Error::input(Place::file(path), "a data file named .jsonl, .csv or .tsv", got)
                    .hint("rename or convert it: one JSON object a line, or CSV with a header row"))
            }
        }
    }
}

/// Reads all rows of `path` into memory; [`RecordReader`] is the same without the memory.
///
/// # Errors
/// As [`RecordReader`], and [`Error::Input`] for a file without a row.
pub fn read_records(path: impl AsRef<Path>) -> Result<Vec<Record>> {
    let path = path.as_ref();
    let records: Vec<Record> = RecordReader::open(path)?.collect::<Result<_>>()?;
    if records.is_empty() {
        return Err(no_rows(path));
    }
    Ok(records)
}

/// The error for a file without a row.
pub(crate) fn no_rows(path: &Path) -> Error {
    Error::input(Place::file(path), "at least one row", "none").hint("the file is empty or has only a header")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(name: &str, content: &[u8]) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(name);
        std::fs::write(&path, content).unwrap();
        (dir, path)
    }

    #[test]
    fn the_extension_chooses_the_format() {
        for (name, content) in
            [("a.jsonl", "{\"x\": \"1\"}\n"), ("a.JSON", "{\"x\": \"1\"}"), ("a.csv", "x\n1\n"), ("a.tsv", "x\n1\n")]
        {
            let (_dir, path) = file(name, content.as_bytes());
            let records = read_records(&path).unwrap();
            assert_eq!(records.len(), 1, "{name}");
            assert_eq!(records[0].fields["x"], Value::from("1"), "{name}");
        }
    }

    #[test]
    fn a_name_that_says_nothing_is_refused() {
        for (name, said) in [("a.parquet", "`.parquet`"), ("a", "a name without extension")] {
            let (_dir, path) = file(name, b"x");
            let error = read_records(&path).unwrap_err();
            assert_eq!(error.exit_code(), 4);
            assert!(error.to_string().contains(said), "{error}");
        }
    }

    #[test]
    fn missing_files_directories_and_empty_files_are_bad_input() {
        let dir = tempfile::tempdir().unwrap();
        let missing = read_records(dir.path().join("no.jsonl")).unwrap_err();
        assert_eq!(missing.exit_code(), 4);
        let folder = dir.path().join("d.csv");
        std::fs::create_dir(&folder).unwrap();
        let folder = read_records(folder).unwrap_err();
        assert_eq!(folder.exit_code(), 4);
        assert!(folder.to_string().contains("a directory"), "{folder}");
        for (name, content) in
            [("a.jsonl", "\n \n"), ("a.jsonl", ""), ("a.csv", "x,y\n"), ("a.csv", ""), ("a.tsv", "\n")]
        {
            let (_dir, path) = file(name, content.as_bytes());
            let error = read_records(&path).unwrap_err();
            assert_eq!(error.exit_code(), 4, "{name} {content:?}");
            assert!(error.to_string().starts_with(&path.display().to_string()), "{error}");
        }
    }

    #[test]
    fn the_reader_ends_after_its_first_error() {
        let (_dir, path) = file("a.jsonl", b"{\"x\": 1}\nnope\n{\"x\": 2}\n");
        let rows: Vec<_> = RecordReader::open(&path).unwrap().collect();
        assert_eq!(rows.len(), 2);
        let error = rows[1].as_ref().unwrap_err().to_string();
        assert!(error.starts_with(&format!("{}:2: ", path.display())), "{error}");
    }

    /// The rows of `bytes` up to the first error.
    fn rows(name: &str, bytes: &[u8]) -> Vec<Result<Record>> {
        let mut next: Box<dyn FnMut() -> Result<Option<Record>>> = match name {
            "a.csv" => match CsvRows::open(bytes, b',') {
                Ok(mut rows) => Box::new(move || rows.next_row()),
                Err(error) => return vec![Err(error)],
            },
            _ => {
                let mut rows = JsonRows::new(bytes);
                Box::new(move || rows.next_row())
            }
        };
        let mut broken = false;
        std::iter::from_fn(|| {
            let row = if broken { None } else { next().transpose() };
            broken = matches!(row, Some(Err(_)));
            row
        })
        .collect()
    }

    #[test]
    fn no_damage_to_a_file_makes_it_panic() {
        let whole: [(&str, &[u8]); 2] = [
            (
                "a.jsonl",
                b"{\"input\": \"a\\u00e9\", \"target\": \"b\"}\r\n{\"input_ids\": [1, 2], \"target_ids\": [3]}\n",
            ),
            ("a.csv", b"input,target\r\n\"a, \"\"b\"\"\nc\",1\n\nd,\xC3\xA9\n"),
        ];
        let mut state = 1u64;
        let mut draw = |below: usize| {
            state = super::super::hash::splitmix64(state);
            (state % below as u64) as usize
        };
        for round in 0..4000 {
            let (name, content) = whole[round % 2];
            let mut content = content[..content.len() - draw(4) * draw(12)].to_vec();
            for _ in 0..draw(5) {
                let at = draw(content.len());
                content[at] = b"\"\n\r,{}[]\\:0\0\xFF\xC3 "[draw(15)];
            }
            let lines = 1 + content.iter().filter(|&&b| b == b'\n').count() as u64;
            for row in rows(name, &content) {
                match row {
                    Ok(record) => assert!((1..=lines).contains(&record.line), "{content:?}"),
                    Err(error) => assert_eq!(error.exit_code(), 4, "{content:?}"),
                }
            }
        }
    }
}
