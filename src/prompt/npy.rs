//! NumPy's `.npy` format, versions 1 to 3, for `[rows, cols]` matrices of little-endian floats.
//!
//! Layout: `\x93NUMPY`, version (2 bytes), header length (2 bytes in version 1, 4 after), a Python dictionary literal with
//! `descr`, `fortran_order` and `shape`, then the values. Source: NumPy's format documentation (NEP 1).

use crate::error::{Error, Place, Result};
use crate::tensorfile::widen;
use crate::values::Values;
use safetensors::Dtype;

pub(super) const MAGIC: &[u8] = b"\x93NUMPY";

/// Rows, columns and values of a matrix; Fortran order is turned into C order.
pub(super) fn parse(bytes: &[u8]) -> Result<(usize, usize, Values)> {
    let (header, data) = split(bytes)?;
    let header = Header::parse(header)?;
    let (dtype, size) = match header.descr.as_str() {
        "<f8" => (Dtype::F64, 8),
        "<f4" => (Dtype::F32, 4),
        "<f2" => (Dtype::F16, 2),
        other => return Err(bad("descr", "'<f4', '<f8' or '<f2'", other).hint("save it with .astype('<f4')")),
    };
    let &[rows, cols] = header.shape.as_slice() else {
        return Err(bad("shape", "two dimensions, rows and width", format!("{:?}", header.shape)));
    };
    let expected = rows.checked_mul(cols).and_then(|n| n.checked_mul(size));
    if expected != Some(data.len()) {
        let want = format!("the {rows} x {cols} values of {size} bytes that the header tells of");
        return Err(bad("values", want, format!("{} bytes", data.len())).hint("the file is truncated or damaged"));
    }
    let values = widen(dtype, data).ok_or_else(|| bad("descr", "a floating-point type", &header.descr))?;
    Ok((rows, cols, if header.fortran { transpose(&values, rows, cols) } else { values }))
}

/// The bytes of a version 1 file.
pub(super) fn to_bytes(rows: usize, cols: usize, values: &Values) -> Vec<u8> {
    let descr = match values {
        Values::F32(_) => "<f4",
        Values::F64(_) => "<f8",
    };
    let mut header = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ({rows}, {cols}), }}");
    // The values begin on a multiple of 64, as NumPy writes them; the header ends in a newline.
    let used = MAGIC.len() + 4 + header.len() + 1;
    header.push_str(&" ".repeat(used.next_multiple_of(64) - used));
    header.push('\n');
    let mut out = MAGIC.to_vec();
    out.extend([1, 0]);
    out.extend((header.len() as u16).to_le_bytes());
    out.extend(header.as_bytes());
    out.extend(values.to_le_bytes());
    out
}

fn bad(item: &str, expected: impl Into<String>, got: impl Into<String>) -> Error {
    Error::input(Place::item(item), expected, got)
}

fn split(bytes: &[u8]) -> Result<(&str, &[u8])> {
    let whole = || bad("header", "a whole .npy file", "a truncated one");
    let rest = bytes.strip_prefix(MAGIC).ok_or_else(|| bad("header", "a .npy file", "another format"))?;
    let (&[major, _], rest) = rest.split_first_chunk::<2>().ok_or_else(whole)?;
    let (len, rest) = match major {
        1 => {
            let (len, rest) = rest.split_first_chunk::<2>().ok_or_else(whole)?;
            (usize::from(u16::from_le_bytes(*len)), rest)
        }
        2 | 3 => {
            let (len, rest) = rest.split_first_chunk::<4>().ok_or_else(whole)?;
            (u32::from_le_bytes(*len) as usize, rest)
        }
        other => return Err(bad("version", "1, 2 or 3", other.to_string())),
    };
    let (header, data) = rest.split_at_checked(len).ok_or_else(whole)?;
    let header = std::str::from_utf8(header).map_err(|_| bad("header", "text", "bytes that are not UTF-8"))?;
    Ok((header, data))
}

#[derive(Default)]
struct Header {
    descr: String,
    fortran: bool,
    shape: Vec<usize>,
}

impl Header {
    /// Reads the dictionary literal. Only what NumPy writes for plain arrays is understood; the rest is refused.
    fn parse(text: &str) -> Result<Self> {
        let broken = || bad("header", "a dictionary of descr, fortran_order and shape", text.trim());
        let inner = text.trim().strip_prefix('{').and_then(|t| t.strip_suffix('}')).ok_or_else(broken)?;
        let (mut descr, mut fortran, mut shape) = (None, None, None);
        let mut rest = inner.trim_start();
        while !rest.is_empty() {
            let (key, after) = quoted(rest).ok_or_else(broken)?;
            rest = after.trim_start().strip_prefix(':').ok_or_else(broken)?.trim_start();
            let repeated = match key {
                "descr" => {
                    let (value, after) = quoted(rest).ok_or_else(broken)?;
                    rest = after;
                    descr.replace(value.to_owned()).is_some()
                }
                "fortran_order" => {
                    let value = rest.starts_with("True");
                    let word = if value { "True" } else { "False" };
                    rest = rest.strip_prefix(word).ok_or_else(broken)?;
                    fortran.replace(value).is_some()
                }
                "shape" => {
                    let (list, after) = rest.strip_prefix('(').and_then(|r| r.split_once(')')).ok_or_else(broken)?;
                    rest = after;
                    shape.replace(dimensions(list).ok_or_else(broken)?).is_some()
                }
                _ => return Err(broken()),
            };
            if repeated {
                return Err(broken());
            }
            rest = rest.trim_start();
            rest = match rest.strip_prefix(',') {
                Some(after) => after.trim_start(),
                None if rest.is_empty() => rest,
                None => return Err(broken()),
            };
        }
        match (descr, fortran, shape) {
            (Some(descr), Some(fortran), Some(shape)) => Ok(Self { descr, fortran, shape }),
            _ => Err(broken()),
        }
    }
}

/// The content of a quoted string without escapes, and what follows it.
fn quoted(text: &str) -> Option<(&str, &str)> {
    let quote = text.chars().next().filter(|c| matches!(c, '\'' | '"'))?;
    text[1..].split_once(quote)
}

fn dimensions(list: &str) -> Option<Vec<usize>> {
    let list = list.trim();
    let list = list.strip_suffix(',').unwrap_or(list);
    if list.is_empty() {
        return Some(Vec::new());
    }
    list.split(',').map(|n| n.trim().parse().ok()).collect()
}

/// C order from Fortran order.
fn transpose(values: &Values, rows: usize, cols: usize) -> Values {
    fn swap<T: Copy>(v: &[T], rows: usize, cols: usize) -> Vec<T> {
        (0..rows).flat_map(|r| (0..cols).map(move |c| v[c * rows + r])).collect()
    }
    match values {
        Values::F32(v) => Values::F32(swap(v, rows, cols)),
        Values::F64(v) => Values::F64(swap(v, rows, cols)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(version: u8, header: &str, data: &[u8]) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        out.extend([version, 0]);
        match version {
            1 => out.extend((header.len() as u16).to_le_bytes()),
            _ => out.extend((header.len() as u32).to_le_bytes()),
        }
        out.extend(header.as_bytes());
        out.extend(data);
        out
    }

    fn f4(values: &[f32]) -> Vec<u8> {
        values.iter().flat_map(|v| v.to_le_bytes()).collect()
    }

    #[test]
    fn both_types_come_back_bit_for_bit() {
        for values in
            [Values::F32(vec![0.1, -0.0, 1e-40, 4.0, 5.0, 6.0]), Values::F64(vec![0.1, 2.0, 3.0, 4.0, 5.0, 5e-324])]
        {
            let bytes = to_bytes(2, 3, &values);
            assert_eq!((bytes.len() - values.to_le_bytes().len()) % 64, 0);
            assert_eq!(parse(&bytes).unwrap(), (2, 3, values));
        }
    }

    #[test]
    fn versions_orders_and_halves_are_read() {
        let header = "{'descr': '<f4', 'fortran_order': True, 'shape': (2, 3), }\n";
        for version in [1, 2, 3] {
            let got = parse(&file(version, header, &f4(&[1.0, 4.0, 2.0, 5.0, 3.0, 6.0]))).unwrap();
            assert_eq!(got, (2, 3, Values::F32(vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0])));
        }
        let half = r#"{"shape":(1,2),"fortran_order":False,"descr":"<f2"}"#;
        assert_eq!(parse(&file(1, half, &[0, 0x3c, 0, 0xc0])).unwrap(), (1, 2, Values::F32(vec![1.0, -2.0])));
    }

    #[test]
    fn hostile_headers_are_refused() {
        let ok = "{'descr': '<f4', 'fortran_order': False, 'shape': (1, 2), }";
        let data = f4(&[1.0, 2.0]);
        assert!(parse(&file(1, ok, &data)).is_ok());
        for (from, to) in [
            ("<f4", ">f4"),
            ("<f4", "|O"),
            ("<f4", "<i4"),
            ("(1, 2)", "(2,)"),
            ("(1, 2)", "(1, 2, 1)"),
            ("(1, 2)", "(1, 3)"),
            ("(1, 2)", "(-1, 2)"),
            ("(1, 2)", "(9223372036854775807, 9223372036854775807)"),
            ("(1, 2)", "(1, 2"),
            ("False", "Maybe"),
            ("'shape'", "'descr'"),
            (", 'shape': (1, 2), ", ""),
            ("{", "["),
            ("'descr'", "'extra'"),
            ("'descr'", "é"),
        ] {
            let header = ok.replace(from, to);
            let error = parse(&file(1, &header, &data)).expect_err(&header);
            assert_eq!(error.exit_code(), 4, "{header}: {error}");
        }
        let whole = file(2, ok, &data);
        for len in 0..whole.len() {
            assert!(parse(&whole[..len]).is_err(), "cut to {len}");
        }
        assert!(parse(&file(4, ok, &data)).is_err());
        assert!(parse(&[whole.as_slice(), &[0]].concat()).is_err());
    }
}
