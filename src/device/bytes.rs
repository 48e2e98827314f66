//! Sizes of memory as people write them.

/// Units of memory, the longer names first.
const UNITS: [(&str, u64); 13] = [
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
    ("kB", 1_000),
    ("KB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
    ("K", 1 << 10),
    ("M", 1 << 20),
    ("G", 1 << 30),
    ("B", 1),
];

/// Bytes from text: a plain number, or one with a unit, as in `8GiB`, `1.5 GB`, `500MB`. `K`, `M` and `G` alone are powers of
/// 1024. `None` for anything else, and for less than a byte or more than 2⁶³ of them.
pub fn parse_bytes(text: &str) -> Option<u64> {
    let text = text.trim();
    let (number, unit) =
        UNITS.iter().find_map(|&(name, unit)| Some((text.strip_suffix(name)?.trim_end(), unit))).unwrap_or((text, 1));
    if number.is_empty() || !number.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.') {
        return None;
    }
    let bytes = number.parse::<f64>().ok()? * unit as f64;
    (1.0..9.2e18).contains(&bytes).then_some(bytes as u64)
}

/// Bytes for people: in the largest of B, KiB, MiB, GiB and TiB of which there is one.
pub fn shown_bytes(bytes: u64) -> String {
    let units = [("TiB", 1u64 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    match units.into_iter().find(|&(_, unit)| bytes >= unit) {
        Some((name, unit)) => format!("{:.1} {name}", bytes as f64 / unit as f64),
        None => format!("{bytes} B"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_with_and_without_units() {
        let good = [("8GiB", 8 << 30), ("500MB", 500_000_000), ("123", 123), ("1.5 GiB", 3 << 29), (" 2K ", 2048)];
        for (text, bytes) in good {
            assert_eq!(parse_bytes(text), Some(bytes), "{text}");
        }
        for text in ["", "GiB", "-1GiB", "0", "1e9", "inf", "NaN", "8 gigs", "1..2GB", "99999999999TB", "8GiBB", "+3"] {
            assert_eq!(parse_bytes(text), None, "{text}");
        }
        assert_eq!([0, 1023, 1 << 20, 3 << 29].map(shown_bytes), ["0 B", "1023 B", "1.0 MiB", "1.5 GiB"]);
    }
}
