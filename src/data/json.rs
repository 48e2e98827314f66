//! JSON Lines: one object a line.

use std::fmt;
use std::io::{BufRead, BufReader, Read};

use serde::de::{DeserializeSeed, Deserializer, MapAccess, Visitor};
use serde_json::{Map, Value};

use super::records::{Record, kind_of};
use crate::error::Place;
use crate::{Error, Result};

const BUFFER: usize = 1 << 18;
const ONE_A_LINE: &str = "write one JSON object a line, each whole on its line";

/// Rows of a JSON Lines stream; errors name the line, not the file.
pub(crate) struct JsonRows<R> {
    source: BufReader<R>,
    buffer: Vec<u8>,
    line: u64,
    /// The last row's number of fields: the next row's map is allocated for exactly as many.
    width: usize,
}

impl<R: Read> JsonRows<R> {
    pub(crate) fn new(source: R) -> Self {
        Self { source: BufReader::with_capacity(BUFFER, source), buffer: Vec::new(), line: 0, width: 0 }
    }

    /// The next row, or `None` at the end.
    pub(crate) fn next_row(&mut self) -> Result<Option<Record>> {
        loop {
            self.buffer.clear();
            let read = self.source.read_until(b'\n', &mut self.buffer).map_err(|e| Error::io("", "read", e))?;
            if read == 0 {
                return Ok(None);
            }
            self.line += 1;
            let mut bytes = self.buffer.as_slice();
            if self.line == 1 {
                bytes = without_mark(bytes)?;
            }
            let text = std::str::from_utf8(bytes).map_err(|e| not_utf8(self.line, e.valid_up_to()))?;
            if text.trim_ascii().is_empty() {
                continue;
            }
            let fields = parse(text, self.line, self.width)?;
            self.width = fields.len();
            return Ok(Some(Record { line: self.line, fields }));
        }
    }
}

/// The first line without a UTF-8 byte order mark; the marks of other encodings are refused by name.
fn without_mark(bytes: &[u8]) -> Result<&[u8]> {
    if bytes.starts_with(&[0xFF, 0xFE]) || bytes.starts_with(&[0xFE, 0xFF]) {
        return Err(Error::input(Place::default().at_line(1), "UTF-8 text", "UTF-16").hint("convert the file to UTF-8"));
    }
    Ok(bytes.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(bytes))
}

/// The error for bytes that are not UTF-8, `at` bytes into a line or field.
pub(crate) fn not_utf8(line: u64, at: usize) -> Error {
    Error::input(Place::default().at_line(line), "UTF-8 text", format!("other bytes at column {}", at + 1))
        .hint("convert the file to UTF-8")
}

fn parse(text: &str, line: u64, width: usize) -> Result<Map<String, Value>> {
    let place = || Place::default().at_line(line);
    if !text.trim_ascii_start().starts_with('{') {
        return Err(match serde_json::from_str::<Value>(text) {
            Ok(value) => Error::input(place(), "a JSON object", kind_of(&value)).hint(ONE_A_LINE),
            Err(e) => malformed(line, &e),
        });
    }
    let mut reader = serde_json::Deserializer::from_str(text);
    let row = RowSeed { width }.deserialize(&mut reader).and_then(|row| reader.end().map(|()| row));
    let row = row.map_err(|e| malformed(line, &e))?;
    match row.duplicate {
        None => Ok(row.fields),
        Some(key) => Err(Error::input(place().of(key), "each field once in a row", "it twice")
            .hint("a reader would silently keep one of the two: remove or rename the other")),
    }
}

fn malformed(line: u64, error: &serde_json::Error) -> Error {
    let text = error.to_string();
    let reason = text.rfind(" at line ").map_or(text.as_str(), |end| &text[..end]);
    Error::input(
        Place::default().at_line(line),
        "a JSON object",
        format!("malformed JSON at column {}: {reason}", error.column()),
    )
    .hint(ONE_A_LINE)
}

/// A row with the first name that came twice in it, if any (names inside nested values are not looked at, as no
/// template can reach them).
struct Row {
    fields: Map<String, Value>,
    duplicate: Option<String>,
}

struct RowSeed {
    width: usize,
}

impl<'de> DeserializeSeed<'de> for RowSeed {
    type Value = Row;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Row, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for RowSeed {
    type Value = Row;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Row, A::Error> {
        let mut row = Row { fields: Map::with_capacity(self.width), duplicate: None };
        while let Some((key, value)) = entries.next_entry::<String, Value>()? {
            if row.duplicate.is_none() && row.fields.contains_key(&key) {
                row.duplicate = Some(key.clone());
            }
            row.fields.insert(key, value);
        }
        Ok(row)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(bytes: &[u8]) -> Result<Vec<Record>> {
        let mut rows = JsonRows::new(bytes);
        std::iter::from_fn(|| rows.next_row().transpose()).collect()
    }

    fn refused(bytes: &[u8]) -> String {
        let error = rows(bytes).unwrap_err().in_file("f");
        assert_eq!(error.exit_code(), 4);
        error.to_string()
    }

    #[test]
    fn rows_keep_their_lines_and_the_order_of_fields() {
        let rows = rows(b"\xEF\xBB\xBF{\"z\": 1, \"a\": \"x\"}\r\n\n  \n {\"z\": 2.5, \"a\": null}").unwrap();
        assert_eq!(rows.iter().map(|r| r.line).collect::<Vec<_>>(), [1, 4]);
        assert_eq!(rows[0].fields.keys().collect::<Vec<_>>(), ["z", "a"]);
        assert_eq!(rows[1].fields["z"], Value::from(2.5));
    }

    #[test]
    fn malformed_lines_are_named_with_the_column() {
        let error = refused(b"{\"a\": 1}\n{\"a\": 1 \"b\": 2}\n");
        assert!(error.starts_with("f:2: "), "{error}");
        assert!(error.contains("malformed JSON at column 9: expected `,` or `}`"), "{error}");
        assert!(refused(b"{\"a\": 1").contains("EOF while parsing"));
        assert!(refused(b"{\"a\": 1} {\"a\": 2}").contains("column 10: trailing characters"));
        assert!(refused(b"{'a': 1}").contains("column 2"));
        assert!(refused(b"text").contains("malformed JSON at column"));
        assert!(refused(b"{\"a\": NaN}").contains("malformed JSON"));
        let deep = [b"{\"a\":".as_slice(), &[b'['; 10_000]].concat();
        assert!(refused(&deep).contains("recursion limit"));
    }

    #[test]
    fn a_line_that_is_no_object_is_refused_by_its_kind() {
        for (line, kind) in [("[1, 2]", "an array"), ("3", "a number"), ("\"x\"", "a string"), ("null", "null")] {
            let error = refused(line.as_bytes());
            assert!(error.contains(&format!("expected a JSON object, got {kind}")), "{error}");
        }
    }

    #[test]
    fn a_name_given_twice_is_refused() {
        let error = refused(b"{\"a\": 1, \"b\": 2, \"a\": 3}");
        assert!(error.contains("a: expected each field once in a row"), "{error}");
    }

    #[test]
    fn other_encodings_are_refused() {
        let error = refused(b"{\"a\": \"ok\"}\n{\"a\": \"caf\xE9\"}\n");
        assert!(error.contains("f:2: expected UTF-8 text, got other bytes at column 11"), "{error}");
        assert!(refused(b"\xFF\xFE{\0").contains("UTF-16"));
    }
}
