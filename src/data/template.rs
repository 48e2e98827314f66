//! Text made from a row's fields: `"{text} Topic:"`.

use serde_json::Value;

use super::records::{Record, kind_of};
use crate::error::Place;
use crate::{Error, Result};

/// A text with `{field}` where a row's field goes; `{{` and `}}` stand for the braces themselves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    parts: Vec<Part>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Literal(String),
    Field(String),
}

impl Template {
    /// Reads a template. Field names are taken as they are, spaces included.
    ///
    /// # Errors
    /// [`Error::Config`] with the position, in characters from 1, of a brace without its pair or a field without a
    /// name.
    pub fn parse(text: &str) -> Result<Self> {
        let mut parts = Vec::new();
        let mut literal = String::new();
        let mut chars = text.chars().enumerate().peekable();
        while let Some((at, c)) = chars.next() {
            match c {
                '{' | '}' if chars.next_if(|&(_, next)| next == c).is_some() => literal.push(c),
                '}' => return Err(fault(text, at, "`}` without a `{` before it")),
                '{' => {
                    let name = field_name(text, at, &mut chars)?;
                    flush(&mut literal, &mut parts);
                    parts.push(Part::Field(name));
                }
                _ => literal.push(c),
            }
        }
        flush(&mut literal, &mut parts);
        Ok(Self { parts })
    }

    /// A template that is one field and nothing else.
    pub fn field(name: impl Into<String>) -> Self {
        Self { parts: vec![Part::Field(name.into())] }
    }

    /// The names of the fields it uses, in order, repeats included.
    pub fn fields(&self) -> impl Iterator<Item = &str> {
        self.parts.iter().filter_map(|part| match part {
            Part::Field(name) => Some(name.as_str()),
            Part::Literal(_) => None,
        })
    }

    /// The text for one row. Strings go in as they are; numbers and booleans as JSON writes them.
    ///
    /// # Errors
    /// [`Error::Input`] with the line and the field for a field that is missing, null, an object or an array.
    pub fn render(&self, record: &Record) -> Result<String> {
        let mut text = String::new();
        for part in &self.parts {
            match part {
                Part::Literal(literal) => text.push_str(literal),
                Part::Field(name) => push_field(&mut text, record, name)?,
            }
        }
        Ok(text)
    }
}

fn flush(literal: &mut String, parts: &mut Vec<Part>) {
    if !literal.is_empty() {
        parts.push(Part::Literal(std::mem::take(literal)));
    }
}

/// The name up to the closing brace; `open` is where the opening one stood.
fn field_name(text: &str, open: usize, chars: &mut impl Iterator<Item = (usize, char)>) -> Result<String> {
    let mut name = String::new();
    for (at, c) in chars {
        match c {
            '}' if name.is_empty() => return Err(fault(text, open, "`{}` without a field name")),
            '}' => return Ok(name),
            '{' => return Err(fault(text, at, "`{` inside a field name")),
            _ => name.push(c),
        }
    }
    Err(fault(text, open, "`{` without a `}` after it"))
}

fn fault(text: &str, at: usize, what: &str) -> Error {
    Error::config(
        Place::default(),
        "a template such as \"{text} Topic:\"",
        format!("{what} at character {} of {text:?}", at + 1),
    )
    .hint("a brace itself is written {{ or }}")
}

fn push_field(text: &mut String, record: &Record, name: &str) -> Result<()> {
    let place = || Place::default().at_line(record.line).of(name);
    match record.fields.get(name) {
        Some(Value::String(value)) => text.push_str(value),
        Some(value @ (Value::Number(_) | Value::Bool(_))) => text.push_str(&value.to_string()),
        Some(value) => {
            return Err(Error::input(place(), "a string, number or boolean", kind_of(value))
                .hint("a template takes plain values only"));
        }
        None => {
            return Err(Error::input(place(), "this field", format!("a row with the fields {}", record.field_names()))
                .hint("name a field of the data in the template, or add it to the row"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn record(value: Value) -> Record {
        let Value::Object(fields) = value else { panic!("an object") };
        Record { line: 7, fields }
    }

    fn render(template: &str, row: Value) -> Result<String> {
        Template::parse(template)?.render(&record(row)).map_err(|e| e.in_file("f"))
    }

    #[test]
    fn fields_and_braces() {
        assert_eq!(render("{text} Topic:", json!({"text": "a {b}"})).unwrap(), "a {b} Topic:");
        assert_eq!(render("{{{a}}}{b c}", json!({"a": "x", "b c": "é"})).unwrap(), "{x}é");
        assert_eq!(render("}}{{", json!({})).unwrap(), "}{");
        assert_eq!(render("plain", json!({})).unwrap(), "plain");
        assert_eq!(render("", json!({})).unwrap(), "");
        assert_eq!(Template::parse("{a}-{b}{a}").unwrap().fields().collect::<Vec<_>>(), ["a", "b", "a"]);
        assert_eq!(Template::parse("{a}").unwrap(), Template::field("a"));
    }

    #[test]
    fn plain_values_render_as_json_writes_them() {
        let row = json!({"i": -3, "f": 0.5, "t": true, "big": u64::MAX});
        assert_eq!(render("{i} {f} {t} {big}", row).unwrap(), "-3 0.5 true 18446744073709551615");
    }

    #[test]
    fn bad_templates_are_refused_with_the_position() {
        for (template, said) in [
            ("é {text", "`{` without a `}` after it at character 3"),
            ("ab}c", "`}` without a `{` before it at character 3"),
            ("{}", "`{}` without a field name at character 1"),
            ("{a{b}}", "`{` inside a field name at character 3"),
            ("{{x}", "`}` without a `{` before it at character 4"),
        ] {
            let error = Template::parse(template).unwrap_err();
            assert_eq!(error.exit_code(), 3);
            assert!(error.to_string().contains(said), "{template}: {error}");
        }
    }

    #[test]
    fn a_missing_field_is_named_with_those_there_are() {
        let error = render("{c}", json!({"a": 1, "b": 2})).unwrap_err();
        assert_eq!(error.exit_code(), 4);
        assert!(error.to_string().contains("f:7: c: expected this field, got a row with the fields a, b ("), "{error}");
        let bare = render("{c}", json!({})).unwrap_err().to_string();
        assert!(bare.contains("fields none"), "{bare}");
    }

    #[test]
    fn values_that_are_no_text_are_refused_by_kind() {
        for (value, kind) in [(json!(null), "null"), (json!({}), "an object"), (json!([1]), "an array")] {
            let error = render("{a}", json!({"a": value})).unwrap_err().to_string();
            assert!(error.contains(&format!("f:7: a: expected a string, number or boolean, got {kind}")), "{error}");
        }
    }
}
