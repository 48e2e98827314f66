//! TensorBoard event files with scalars.
//!
//! A file is a sequence of TFRecords: length (u64), its masked CRC-32C, the bytes, their masked CRC-32C, all little-endian.
//! Each record is an `Event` message of `tensorflow/core/util/event.proto`, of which these fields are written:
//! `wall_time = 1` (double), `step = 2` (int64), `file_version = 3` (string), `summary = 5` and `session_log = 7`.

use super::log::unix_time;
use crate::error::{Error, Result};
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

/// A writer of one event file.
#[derive(Debug)]
pub struct EventWriter {
    path: PathBuf,
    file: File,
}

impl EventWriter {
    /// Begins a new event file `events.out.tfevents.<seconds>.<host>` in `dir`, which is made if it is missing.
    ///
    /// A resumed run gives the first step that it will write anew as `resume_from`: TensorBoard then hides what the
    /// directory's earlier files say of that step and of later ones.
    ///
    /// # Errors
    /// `Io` where the system refuses.
    pub fn create(dir: impl AsRef<Path>, resume_from: Option<u64>) -> Result<Self> {
        let dir = dir.as_ref();
        fs::create_dir_all(dir).map_err(|e| Error::io(dir, "create", e))?;
        let now = unix_time();
        let name = format!("events.out.tfevents.{:010}.{}", now as u64, host());
        let (path, file) = create_new(dir, &name)?;
        let mut writer = Self { path, file };
        let mut version = Message::event(now, None);
        version.bytes_field(3, b"brain.Event:2");
        writer.record(&version.0)?;
        if let Some(step) = resume_from {
            let mut start = Message::default();
            start.varint_field(1, 1); // SessionLog.status = START
            let mut event = Message::event(now, Some(step));
            event.bytes_field(7, &start.0);
            writer.record(&event.0)?;
        }
        Ok(writer)
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes one event of step `step` with every `(tag, value)` of `scalars`; values are narrowed to f32.
    ///
    /// # Errors
    /// `Io` where the system refuses.
    pub fn scalars(&mut self, step: u64, scalars: &[(&str, f64)]) -> Result<()> {
        self.scalars_at(unix_time(), step, scalars)
    }

    fn scalars_at(&mut self, time: f64, step: u64, scalars: &[(&str, f64)]) -> Result<()> {
        let mut summary = Message::default();
        for (tag, value) in scalars {
            let mut entry = Message::default();
            entry.bytes_field(1, tag.as_bytes());
            entry.float_field(2, *value as f32);
            summary.bytes_field(1, &entry.0);
        }
        let mut event = Message::event(time, Some(step));
        event.bytes_field(5, &summary.0);
        self.record(&event.0)
    }

    /// Writes one framed record at once, so that a reader never waits for half of one.
    fn record(&mut self, data: &[u8]) -> Result<()> {
        let len = (data.len() as u64).to_le_bytes();
        let mut out = Vec::with_capacity(data.len() + 16);
        out.extend(len);
        out.extend(masked_crc(&len).to_le_bytes());
        out.extend(data);
        out.extend(masked_crc(data).to_le_bytes());
        self.file.write_all(&out).map_err(|e| Error::io(&self.path, "write", e))
    }
}

/// A file of that name, or with `.1`, `.2`, … added where it is taken.
fn create_new(dir: &Path, name: &str) -> Result<(PathBuf, File)> {
    let mut number = 0u64;
    loop {
        let path = if number == 0 { dir.join(name) } else { dir.join(format!("{name}.{number}")) };
        match OpenOptions::new().write(true).create_new(true).open(&path) {
            Ok(file) => return Ok((path, file)),
            Err(e) if e.kind() == ErrorKind::AlreadyExists => number += 1,
            Err(e) => return Err(Error::io(&path, "create", e)),
        }
    }
}

/// The machine's name, as far as a file name may hold it.
fn host() -> String {
    let name = ["/proc/sys/kernel/hostname", "/etc/hostname"]
        .iter()
        .find_map(|path| fs::read_to_string(path).ok())
        .or_else(|| std::env::var("HOSTNAME").or_else(|_| std::env::var("COMPUTERNAME")).ok())
        .unwrap_or_default();
    let plain: String = name.trim().chars().filter(|c| c.is_ascii_alphanumeric() || "-_.".contains(*c)).collect();
    if plain.is_empty() { "localhost".into() } else { plain }
}

/// The checksum of TFRecords: CRC-32C, rotated right by 15 bits, plus a constant.
fn masked_crc(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// A protobuf message under construction.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn event(time: f64, step: Option<u64>) -> Self {
        let mut event = Self::default();
        event.key(1, 1);
        event.0.extend(time.to_le_bytes());
        if let Some(step) = step {
            event.varint_field(2, step);
        }
        event
    }

    fn key(&mut self, field: u64, wire_type: u64) {
        self.varint(field << 3 | wire_type);
    }

    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    fn varint_field(&mut self, field: u64, value: u64) {
        self.key(field, 0);
        self.varint(value);
    }

    fn float_field(&mut self, field: u64, value: f32) {
        self.key(field, 5);
        self.0.extend(value.to_le_bytes());
    }

    fn bytes_field(&mut self, field: u64, value: &[u8]) {
        self.key(field, 2);
        self.varint(value.len() as u64);
        self.0.extend(value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// CRC-32C bit by bit, from its polynomial.
    fn crc(bytes: &[u8]) -> u32 {
        let mut crc = !0u32;
        for &byte in bytes {
            crc ^= u32::from(byte);
            for _ in 0..8 {
                crc = if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 };
            }
        }
        !crc
    }

    fn masked(bytes: &[u8]) -> [u8; 4] {
        let crc = crc(bytes);
        crc.rotate_left(17).wrapping_add(0xa282_ead8).to_le_bytes()
    }

    fn records(mut bytes: &[u8]) -> Vec<Vec<u8>> {
        let mut out = Vec::new();
        while !bytes.is_empty() {
            let len = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
            assert_eq!(bytes[8..12], masked(&bytes[..8]));
            let data = &bytes[12..12 + len];
            assert_eq!(bytes[12 + len..16 + len], masked(data));
            out.push(data.to_vec());
            bytes = &bytes[16 + len..];
        }
        out
    }

    /// The fields of a message: number and raw content (a varint as 8 bytes).
    fn fields(mut bytes: &[u8]) -> Vec<(u64, Vec<u8>)> {
        fn varint(bytes: &mut &[u8]) -> u64 {
            let end = bytes.iter().position(|b| b & 0x80 == 0).unwrap();
            let value = bytes[..=end].iter().rev().fold(0u64, |v, b| v << 7 | u64::from(b & 0x7f));
            *bytes = &bytes[end + 1..];
            value
        }
        let mut out = Vec::new();
        while !bytes.is_empty() {
            let key = varint(&mut bytes);
            let len = match key & 7 {
                0 => {
                    out.push((key >> 3, varint(&mut bytes).to_le_bytes().to_vec()));
                    continue;
                }
                1 => 8,
                2 => varint(&mut bytes) as usize,
                5 => 4,
                other => panic!("wire type {other}"),
            };
            out.push((key >> 3, bytes[..len].to_vec()));
            bytes = &bytes[len..];
        }
        out
    }

    #[test]
    fn the_checksum_is_crc_32c() {
        assert_eq!(crc(b"123456789"), 0xe306_9283); // the check value of the CRC catalogue
        assert_eq!(masked_crc(b"123456789").to_le_bytes(), masked(b"123456789"));
    }

    #[test]
    fn an_independent_reader_finds_what_was_written() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = EventWriter::create(dir.path().join("tb"), Some(300)).unwrap();
        let name = writer.path().file_name().unwrap().to_str().unwrap().to_owned();
        assert!(name.starts_with("events.out.tfevents."), "{name}");
        writer.scalars_at(12.5, 300, &[("train/loss", 0.1), ("é", -2.0)]).unwrap();
        let records = records(&fs::read(writer.path()).unwrap());
        assert_eq!(records.len(), 3);
        assert_eq!(fields(&records[0])[1], (3, b"brain.Event:2".to_vec()));
        let step = (2, 300u64.to_le_bytes().to_vec());
        assert_eq!(fields(&records[1])[1..], [step.clone(), (7, vec![8, 1])]);
        let event = fields(&records[2]);
        assert_eq!(event[..2], [(1, 12.5f64.to_le_bytes().to_vec()), step]);
        let values: Vec<_> = fields(&event[2].1).iter().map(|(number, v)| (*number, fields(v))).collect();
        let entry = |tag: &str, value: f32| (1, vec![(1, tag.as_bytes().to_vec()), (2, value.to_le_bytes().to_vec())]);
        assert_eq!((event[2].0, values), (5, vec![entry("train/loss", 0.1), entry("é", -2.0)]));
    }

    #[test]
    fn two_writers_of_one_second_do_not_share_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let paths: Vec<_> =
            (0..3).map(|_| EventWriter::create(dir.path(), None).unwrap().path().to_path_buf()).collect();
        assert!(paths[0] != paths[1] && paths[1] != paths[2] && paths[0] != paths[2]);
        fs::write(dir.path().join("file"), b"").unwrap();
        assert_eq!(EventWriter::create(dir.path().join("file"), None).unwrap_err().exit_code(), 7);
    }
}
