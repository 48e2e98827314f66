//! Metadata values. Arrays stay in the file: a vocabulary is walked when the tokenizer is made, not copied before.

use super::Source;
use super::cursor::Cursor;
use crate::error::Place;
use crate::{Error, Result};
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

/// How deep arrays may be nested.
const DEEPEST: usize = 8;

/// A metadata value. Integers and numbers of all widths are kept in the widest, exactly.
#[derive(Debug, Clone)]
pub enum Value {
    /// An unsigned integer.
    U64(u64),
    /// A signed integer.
    I64(i64),
    /// A floating-point number.
    F64(f64),
    /// A truth value.
    Bool(bool),
    /// A string.
    String(String),
    /// Values of one type, left in the file.
    Array(Array),
}

/// An array of values of one type, left in the file. Cloning copies a reference.
#[derive(Clone)]
pub struct Array {
    kind: Kind,
    len: usize,
    source: Arc<Source>,
    range: Range<usize>,
}

impl Array {
    /// Number of values.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no value.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The values in order.
    pub fn iter(&self) -> impl Iterator<Item = Value> + '_ {
        let mut cursor = self.cursor();
        let offset = self.range.start;
        // All of it was read once when the file was opened.
        (0..self.len).map_while(move |_| read_kind(self.kind, &mut cursor, &self.source, offset, "", 0).ok())
    }

    /// The strings in order, in place; `None` if the array holds anything else.
    pub fn strings(&self) -> Option<impl Iterator<Item = &str> + '_> {
        let mut cursor = self.cursor();
        (self.kind == Kind::String).then(|| (0..self.len).map_while(move |_| cursor.string("").ok()))
    }

    /// The numbers in order; `None` if the array holds anything else.
    pub fn numbers(&self) -> Option<impl Iterator<Item = f64> + '_> {
        self.kind.size().filter(|_| self.kind != Kind::Bool).map(|_| {
            self.iter().map_while(|value| match value {
                Value::F64(x) => Some(x),
                Value::U64(n) => Some(n as f64),
                Value::I64(n) => Some(n as f64),
                _ => None,
            })
        })
    }

    fn cursor(&self) -> Cursor<'_> {
        Cursor::new(&self.source.path, &self.source.bytes()[self.range.clone()])
    }
}

impl fmt::Debug for Array {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{} × {:?}]", self.len, self.kind)
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::U64(n) => write!(f, "{n}"),
            Self::I64(n) => write!(f, "{n}"),
            Self::F64(x) => write!(f, "{x}"),
            Self::Bool(b) => write!(f, "{b}"),
            // A precision cuts a long text short.
            Self::String(text) => match f.precision() {
                Some(most) => write!(f, "{:?}", text.chars().take(most).collect::<String>()),
                None => write!(f, "{text:?}"),
            },
            Self::Array(array) => write!(f, "{array:?}"),
        }
    }
}

/// The type of a value in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Bool,
    String,
    Array,
    U64,
    I64,
    F64,
}

impl Kind {
    fn read(cursor: &mut Cursor<'_>, key: &str) -> Result<Self> {
        use Kind::*;
        const KINDS: [Kind; 13] = [U8, I8, U16, I16, U32, I32, F32, Bool, String, Array, U64, I64, F64];
        let id = cursor.u32("a value's type")?;
        KINDS.get(id as usize).copied().ok_or_else(|| {
            Error::input(Place::file(cursor.path()).of(key), "a value of type 0 to 12", format!("type {id}"))
        })
    }

    /// Bytes of a value; `None` where that depends on the value.
    fn size(self) -> Option<usize> {
        match self {
            Self::U8 | Self::I8 | Self::Bool => Some(1),
            Self::U16 | Self::I16 => Some(2),
            Self::U32 | Self::I32 | Self::F32 => Some(4),
            Self::U64 | Self::I64 | Self::F64 => Some(8),
            Self::String | Self::Array => None,
        }
    }

    /// Bytes a value takes at least.
    fn smallest(self) -> usize {
        match self {
            Self::String => 8,
            Self::Array => 4 + 8,
            other => other.size().unwrap_or(1),
        }
    }
}

/// Reads a type and a value of it, which `source` holds and which belongs to `key`.
pub(super) fn read(cursor: &mut Cursor<'_>, source: &Arc<Source>, key: &str) -> Result<Value> {
    let kind = Kind::read(cursor, key)?;
    read_kind(kind, cursor, source, 0, key, 0)
}

/// Reads a value; the cursor's first byte is byte `offset` of `source`.
fn read_kind(
    kind: Kind,
    cursor: &mut Cursor<'_>,
    source: &Arc<Source>,
    offset: usize,
    key: &str,
    depth: usize,
) -> Result<Value> {
    Ok(match kind {
        Kind::U8 => Value::U64(u8::from_le_bytes(cursor.array(key)?).into()),
        Kind::U16 => Value::U64(u16::from_le_bytes(cursor.array(key)?).into()),
        Kind::U32 => Value::U64(cursor.u32(key)?.into()),
        Kind::U64 => Value::U64(cursor.u64(key)?),
        Kind::I8 => Value::I64(i8::from_le_bytes(cursor.array(key)?).into()),
        Kind::I16 => Value::I64(i16::from_le_bytes(cursor.array(key)?).into()),
        Kind::I32 => Value::I64(i32::from_le_bytes(cursor.array(key)?).into()),
        Kind::I64 => Value::I64(i64::from_le_bytes(cursor.array(key)?)),
        Kind::F32 => Value::F64(f32::from_le_bytes(cursor.array(key)?).into()),
        Kind::F64 => Value::F64(f64::from_le_bytes(cursor.array(key)?)),
        Kind::Bool => Value::Bool(read_bool(cursor, key)?),
        Kind::String => Value::String(cursor.string(key)?.to_owned()),
        Kind::Array => {
            let (kind, len, range) = walk_array(cursor, key, depth)?;
            let range = range.start + offset..range.end + offset;
            Value::Array(Array { kind, len, source: Arc::clone(source), range })
        }
    })
}

fn read_bool(cursor: &mut Cursor<'_>, key: &str) -> Result<bool> {
    match cursor.array::<1>(key)? {
        [0] => Ok(false),
        [1] => Ok(true),
        [other] => Err(Error::input(Place::file(cursor.path()).of(key), "0 or 1 for a truth value", other.to_string())),
    }
}

/// Checks an array and all in it; its values lie in the returned range of the cursor's bytes.
fn walk_array(cursor: &mut Cursor<'_>, key: &str, depth: usize) -> Result<(Kind, usize, Range<usize>)> {
    if depth >= DEEPEST {
        let expected = format!("arrays nested at most {DEEPEST} deep");
        return Err(Error::input(Place::file(cursor.path()).of(key), expected, "deeper ones"));
    }
    let kind = Kind::read(cursor, key)?;
    let len = cursor.count(kind.smallest(), &format!("values of {key}"))?;
    let start = cursor.at();
    match kind.size() {
        Some(_) if kind == Kind::Bool => (0..len).try_for_each(|_| read_bool(cursor, key).map(drop))?,
        // The count was checked against what is left, so the product is in range.
        Some(size) => cursor.take(len * size, key).map(drop)?,
        None if kind == Kind::String => (0..len).try_for_each(|_| cursor.string(key).map(drop))?,
        None => (0..len).try_for_each(|_| walk_array(cursor, key, depth + 1).map(drop))?,
    }
    Ok((kind, len, start..cursor.at()))
}
