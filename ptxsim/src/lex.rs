//! PTX text to tokens. Line numbers are kept: `.loc` and `.file` end with their line, all else with a semicolon.

use crate::ParseError;

/// What a token is. Words are everything made of name characters: registers, opcodes with their modifiers, numbers.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) enum Kind<'a> {
    Word(&'a str),
    Text(&'a str),
    Punct(char),
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Token<'a> {
    pub(crate) kind: Kind<'a>,
    pub(crate) line: u32,
}

fn is_word(c: u8) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, b'_' | b'$' | b'%' | b'.')
}

pub(crate) fn tokens(text: &str) -> Result<Vec<Token<'_>>, ParseError> {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len() / 5);
    let (mut at, mut line) = (0, 1);
    while at < bytes.len() {
        let c = bytes[at];
        let start = at;
        match c {
            b'\n' => {
                line += 1;
                at += 1;
            }
            // cuda tools terminate text with a NUL
            c if c.is_ascii_whitespace() || c == 0 => at += 1,
            b'/' if bytes.get(at + 1) == Some(&b'/') => {
                while at < bytes.len() && bytes[at] != b'\n' {
                    at += 1;
                }
            }
            b'/' if bytes.get(at + 1) == Some(&b'*') => {
                let end = text[at..].find("*/").ok_or_else(|| ParseError::new(line, "a comment is not closed"))?;
                line += text[at..at + end].matches('\n').count() as u32;
                at += end + 2;
            }
            b'"' => {
                let end = text[at + 1..].find('"').ok_or_else(|| ParseError::new(line, "a string is not closed"))?;
                out.push(Token { kind: Kind::Text(&text[at + 1..at + 1 + end]), line });
                at += end + 2;
            }
            c if is_word(c) => {
                // "::" belongs to a word (ld.global.L1::no_allocate.f32); one colon ends a label
                while at < bytes.len() {
                    if is_word(bytes[at]) {
                        at += 1;
                    } else if bytes[at..].starts_with(b"::") {
                        at += 2;
                    } else {
                        break;
                    }
                }
                out.push(Token { kind: Kind::Word(&text[start..at]), line });
            }
            c if c.is_ascii() => {
                out.push(Token { kind: Kind::Punct(c as char), line });
                at += 1;
            }
            _ => return Err(ParseError::new(line, "a character that is not ASCII")),
        }
    }
    Ok(out)
}
