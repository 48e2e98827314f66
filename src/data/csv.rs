//! CSV and TSV: a header row, then rows of as many fields, quoted as RFC 4180 says.

use std::io::{self, Chain, Read};

use serde_json::{Map, Value};

use super::json::not_utf8;
use super::records::Record;
use crate::error::Place;
use crate::{Error, Result};

/// Two blank lines put behind the file. A row that closes its quotes ends before the second of them, so a row that
/// reaches it shows a quote left open: the csv crate alone would silently take the rest of the file as one field.
const TAIL: &[u8] = b"\n\n";

/// Rows of a CSV stream; errors name the line, not the file.
pub(crate) struct CsvRows<R> {
    reader: csv::Reader<Tracked<Chain<R, &'static [u8]>>>,
    names: Vec<String>,
    record: csv::ByteRecord,
}

impl<R: Read> CsvRows<R> {
    /// Reads the header.
    pub(crate) fn open(source: R, delimiter: u8) -> Result<Self> {
        let reader = csv::ReaderBuilder::new()
            .has_headers(false)
            .flexible(true)
            .delimiter(delimiter)
            .from_reader(Tracked::new(source.chain(TAIL)));
        let mut rows = Self { reader, names: Vec::new(), record: csv::ByteRecord::new() };
        if let Some(line) = rows.advance()? {
            rows.names = header(&rows.record, line)?;
        }
        Ok(rows)
    }

    /// The next row, or `None` at the end.
    pub(crate) fn next_row(&mut self) -> Result<Option<Record>> {
        let Some(line) = self.advance()? else { return Ok(None) };
        if self.record.len() != self.names.len() {
            return Err(wrong_width(line, self.names.len(), self.record.len()));
        }
        let mut fields = Map::with_capacity(self.names.len());
        for (name, bytes) in self.names.iter().zip(&self.record) {
            fields.insert(name.clone(), Value::String(text(bytes, line, name)?));
        }
        Ok(Some(Record { line, fields }))
    }

    /// Reads one row into `record` and returns the line it begins on.
    fn advance(&mut self) -> Result<Option<u64>> {
        let start = self.reader.position().byte();
        if !self.reader.read_byte_record(&mut self.record).map_err(unreadable)? {
            return Ok(None);
        }
        let end = self.reader.position().byte();
        let source = self.reader.get_mut();
        let line = source.line_of(start);
        if source.ended && end == source.read {
            return Err(Error::input(Place::default().at_line(line), "a closing quote", "the end of the file")
                .hint("a field that begins with \" ends with \"; a quote inside it is written twice"));
        }
        Ok(Some(line))
    }
}

fn unreadable(error: csv::Error) -> Error {
    let text = error.to_string();
    let source = match error.into_kind() {
        csv::ErrorKind::Io(source) => source,
        _ => io::Error::other(text),
    };
    Error::io("", "read", source)
}

fn text(bytes: &[u8], line: u64, name: &str) -> Result<String> {
    std::str::from_utf8(bytes).map(str::to_owned).map_err(|e| {
        let mut error = not_utf8(line, e.valid_up_to());
        if let Error::Input(problem) = &mut error {
            problem.place.item = Some(name.to_owned());
        }
        error
    })
}

fn header(record: &csv::ByteRecord, line: u64) -> Result<Vec<String>> {
    let mut names: Vec<String> = Vec::with_capacity(record.len());
    for bytes in record {
        let name = text(bytes, line, "header")?;
        if names.contains(&name) {
            return Err(Error::input(
                Place::default().at_line(line),
                "each column named once",
                format!("`{name}` twice"),
            )
            .hint("the first row names the columns; rename one of them"));
        }
        names.push(name);
    }
    Ok(names)
}

fn wrong_width(line: u64, expected: usize, got: usize) -> Error {
    let count = |n: usize| format!("{n} field{}", if n == 1 { "" } else { "s" });
    Error::input(Place::default().at_line(line), format!("{} as in the header", count(expected)), count(got))
        .hint("quote a field that holds the separator or a line break")
}

/// Passes bytes through and knows on which line any of them stands. The csv crate counts lines too, but counts the
/// blank lines before a row, and the `\n` of the previous row's `\r\n`, as the row's own.
struct Tracked<R> {
    source: R,
    /// The bytes read from `base` on.
    window: Vec<u8>,
    base: u64,
    /// The line at `base`.
    line: u64,
    /// All bytes read so far.
    read: u64,
    ended: bool,
    /// Bytes at the front of `window` that were passed already, not yet moved out.
    passed: usize,
}

impl<R> Tracked<R> {
    fn new(source: R) -> Self {
        Self { source, window: Vec::new(), base: 0, line: 1, read: 0, ended: false, passed: 0 }
    }

    /// The line of the first byte at or after `start` that is not a line break; `start` never goes back, and what
    /// lies before it is forgotten.
    fn line_of(&mut self, start: u64) -> u64 {
        let ahead = start.saturating_sub(self.base) as usize;
        let ahead = ahead.min(self.window.len() - self.passed);
        self.pass(ahead);
        let breaks = self.window[self.passed..].iter().take_while(|b| matches!(b, b'\n' | b'\r')).count();
        self.pass(breaks);
        self.line
    }

    fn pass(&mut self, count: usize) {
        let passed = &self.window[self.passed..self.passed + count];
        self.line += passed.iter().filter(|&&b| b == b'\n').count() as u64;
        self.passed += count;
        self.base += count as u64;
    }
}

impl<R: Read> Read for Tracked<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.source.read(buffer)?;
        self.window.drain(..self.passed);
        self.passed = 0;
        self.window.extend_from_slice(&buffer[..count]);
        self.read += count as u64;
        self.ended |= count == 0 && !buffer.is_empty();
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(bytes: &[u8]) -> Result<Vec<Record>> {
        let mut rows = CsvRows::open(bytes, b',')?;
        std::iter::from_fn(|| rows.next_row().transpose()).collect()
    }

    fn refused(bytes: &[u8]) -> String {
        let error = rows(bytes).unwrap_err().in_file("f");
        assert_eq!(error.exit_code(), 4);
        error.to_string()
    }

    fn lines(bytes: &[u8]) -> Vec<u64> {
        rows(bytes).unwrap().iter().map(|r| r.line).collect()
    }

    #[test]
    fn fields_are_strings_under_their_names() {
        let rows = rows(b"\xEF\xBB\xBFtext,label\r\n\"a, \"\"b\"\"\nc\",1\r\nd,\r\n").unwrap();
        assert_eq!(rows[0].fields["text"], "a, \"b\"\nc");
        assert_eq!(rows[0].fields["label"], "1");
        assert_eq!(rows[1].fields["label"], "");
    }

    #[test]
    fn every_row_knows_the_line_it_begins_on() {
        assert_eq!(lines(b"a,b\n1,2\n3,4"), [2, 3]);
        assert_eq!(lines(b"a,b\r\n1,2\r\n3,4\r\n"), [2, 3]);
        assert_eq!(lines(b"\n\na,b\n\n\n1,2\n\r\n3,4\n\n"), [6, 8]);
        assert_eq!(lines(b"a,b\n\"1\n\n1\",2\n\n3,4\n"), [2, 6]);
        assert_eq!(lines(b"a,b\r\n\"1\r\n1\",2\r\n\r\n3,4"), [2, 5]);
    }

    #[test]
    fn lines_are_right_across_many_buffers() {
        let mut text = b"a,b\r\n".to_vec();
        for i in 0..50_000 {
            text.extend(format!("{i},\"x\ny\"\r\n").bytes());
        }
        let lines = lines(&text);
        assert!(lines.iter().enumerate().all(|(i, &line)| line == 2 + 2 * i as u64));
    }

    #[test]
    fn a_row_of_another_width_is_refused() {
        let error = refused(b"a,b\n1,2\n\n1,2,3\n");
        assert!(error.contains("f:4: expected 2 fields as in the header, got 3 fields"), "{error}");
        assert!(refused(b"a,b\n1\n").contains("f:2: expected 2 fields as in the header, got 1 field ("));
    }

    #[test]
    fn a_quote_left_open_is_refused_where_it_began() {
        for text in ["a,b\n1,2\n3,\"4\n5,6\n", "a,b\n1,2\n3,\"4", "a,b\n1,2\n3,\"4\n\n\n", "a,b\n1,2\n3,\"4\r\n"] {
            let error = refused(text.as_bytes());
            assert!(error.contains("f:3: expected a closing quote, got the end of the file"), "{text:?}: {error}");
        }
        for text in ["a\n\"1\"", "a\n\"1\n\n\"", "a\n\"1\"\n\n\n", "a\n5\" pipe\n", "a\n\"1\"\r\n", "a\n\"1\"\"\"\r"] {
            assert_eq!(rows(text.as_bytes()).unwrap().len(), 1, "{text:?}");
        }
    }

    #[test]
    fn an_open_quote_is_not_mistaken_at_any_buffer_boundary() {
        for length in 8180..8205 {
            let text = format!("a\n{}\nz\n", "x".repeat(length));
            assert_eq!(lines(text.as_bytes()), [2, 3], "{length}");
        }
    }

    #[test]
    fn columns_named_twice_are_refused() {
        assert!(refused(b"a,b,a\n1,2,3\n").contains("f:1: expected each column named once, got `a` twice"));
    }

    #[test]
    fn other_encodings_are_refused() {
        let error = refused(b"a,b\n1,2\n1,caf\xE9\n");
        assert!(error.contains("f:3: b: expected UTF-8 text, got other bytes at column 4"), "{error}");
        assert!(refused(b"caf\xE9,b\n1,2\n").contains("f:1: header: expected UTF-8"));
    }
}
