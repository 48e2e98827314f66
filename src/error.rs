//! Every error of the crate: what was expected, what was got, where, and what to do.
//!
//! The groups are the exit codes of the command line (see [`Error::exit_code`]), so that a library caller can
//! match on the same distinction a shell script sees.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

/// The crate's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, grouped by who can mend it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An op was given operands that do not fit together. A bug in the caller of the library.
    #[error("{op}: expected {expected}, got {got}")]
    Op {
        /// The op's name.
        op: &'static str,
        /// Shapes, dtypes or rows that would have been right.
        expected: String,
        /// What came instead.
        got: String,
    },
    /// The command line cannot be carried out as it was written.
    #[error("{0}")]
    Usage(Box<Problem>),
    /// A configuration value is unknown, of the wrong type, out of range or contradicts another.
    #[error("{0}")]
    Config(Box<Problem>),
    /// A model, tokenizer, data file, prompt or checkpoint is broken, or does not fit the others.
    #[error("{0}")]
    Input(Box<Problem>),
    /// The loss or a gradient is no longer a finite number.
    #[error("{0}")]
    Diverged(Box<Problem>),
    /// The device is missing, failed, or has too little memory.
    #[error("{0}")]
    Device(Box<Problem>),
    /// The operating system refused to read or write.
    #[error("{path}: cannot {action}: {source}")]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What was tried, as in "cannot *write*".
        action: &'static str,
        /// The system's reason.
        source: io::Error,
    },
    /// A signal asked the run to stop; what there was to save has been saved.
    #[error("interrupted by signal {signal}")]
    Interrupted {
        /// The signal's number.
        signal: i32,
    },
}

/// One thing wrong in something a person wrote or a file holds.
#[derive(Debug, Clone, Default)]
pub struct Problem {
    /// File, line, and item (tensor, field, configuration key).
    pub place: Place,
    /// What would have been right.
    pub expected: String,
    /// What was found.
    pub got: String,
    /// What to do about it; empty if `expected` says it all.
    pub hint: String,
}

/// Where a problem lies; any part may be unknown.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Place {
    /// The file.
    pub path: Option<PathBuf>,
    /// The line in it, counted from 1.
    pub line: Option<u64>,
    /// The tensor, field or configuration key.
    pub item: Option<String>,
}

impl Place {
    /// A whole file.
    pub fn file(path: impl AsRef<Path>) -> Self {
        Self { path: Some(path.as_ref().to_path_buf()), ..Self::default() }
    }

    /// Something with a name but no file: a configuration key, an argument.
    pub fn item(item: impl Into<String>) -> Self {
        Self { item: Some(item.into()), ..Self::default() }
    }

    /// The same place, narrowed to a line (counted from 1).
    #[must_use]
    pub fn at_line(mut self, line: u64) -> Self {
        self.line = Some(line);
        self
    }

    /// The same place, narrowed to a tensor, field or key.
    #[must_use]
    pub fn of(mut self, item: impl Into<String>) -> Self {
        self.item = Some(item.into());
        self
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.path, self.line) {
            (Some(path), Some(line)) => write!(f, "{}:{line}", path.display())?,
            (Some(path), None) => write!(f, "{}", path.display())?,
            (None, Some(line)) => write!(f, "line {line}")?,
            (None, None) => {}
        }
        if let Some(item) = &self.item {
            let colon = if self.path.is_some() || self.line.is_some() { ": " } else { "" };
            write!(f, "{colon}{item}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = self.place.to_string();
        if !place.is_empty() {
            write!(f, "{place}: ")?;
        }
        match (self.expected.is_empty(), self.got.is_empty()) {
            (false, false) => write!(f, "expected {}, got {}", self.expected, self.got)?,
            (false, true) => write!(f, "expected {}", self.expected)?,
            (true, _) => write!(f, "{}", self.got)?,
        }
        if !self.hint.is_empty() {
            write!(f, " ({})", self.hint)?;
        }
        Ok(())
    }
}

impl Error {
    /// Operands that do not fit: `op` expected one thing and got another.
    pub fn op(op: &'static str, expected: impl Into<String>, got: impl Into<String>) -> Self {
        Self::Op { op, expected: expected.into(), got: got.into() }
    }

    /// A command line that cannot be carried out.
    pub fn usage(place: Place, expected: impl Into<String>, got: impl Into<String>) -> Self {
        Self::Usage(Problem::boxed(place, expected, got))
    }

    /// A bad configuration value.
    pub fn config(place: Place, expected: impl Into<String>, got: impl Into<String>) -> Self {
        Self::Config(Problem::boxed(place, expected, got))
    }

    /// A bad model, tokenizer, data file, prompt or checkpoint.
    pub fn input(place: Place, expected: impl Into<String>, got: impl Into<String>) -> Self {
        Self::Input(Problem::boxed(place, expected, got))
    }

    /// A loss or gradient that is not finite.
    pub fn diverged(place: Place, expected: impl Into<String>, got: impl Into<String>) -> Self {
        Self::Diverged(Problem::boxed(place, expected, got))
    }

    /// A device that is missing, failed, or is too small.
    pub fn device(place: Place, expected: impl Into<String>, got: impl Into<String>) -> Self {
        Self::Device(Problem::boxed(place, expected, got))
    }

    /// A refusal of the operating system while doing `action` ("read", "write", …) with `path`.
    ///
    /// A file that is not there when it should be read is the user's input, not the system's failure.
    pub fn io(path: impl AsRef<Path>, action: &'static str, source: io::Error) -> Self {
        if source.kind() == io::ErrorKind::NotFound && matches!(action, "read" | "open" | "map" | "list") {
            return Self::input(Place::file(path), "an existing file or directory", "nothing there")
                .hint("check the path");
        }
        Self::Io { path: path.as_ref().to_path_buf(), action, source }
    }

    /// The same error with advice added; errors that carry no advice are returned as they are.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        if let Some(problem) = self.problem_mut() {
            problem.hint = hint.into();
        }
        self
    }

    /// The same error with advice added where it carries none.
    #[must_use]
    pub fn or_hint(mut self, hint: impl Into<String>) -> Self {
        if let Some(problem) = self.problem_mut()
            && problem.hint.is_empty()
        {
            problem.hint = hint.into();
        }
        self
    }

    /// The same error, said of `path` where it did not name a file itself.
    #[must_use]
    pub fn in_file(mut self, path: impl AsRef<Path>) -> Self {
        if let Some(problem) = self.problem_mut()
            && problem.place.path.is_none()
        {
            problem.place.path = Some(path.as_ref().to_path_buf());
        }
        self
    }

    /// The same error, said of `line` (counted from 1) where it did not name a line itself.
    #[must_use]
    pub fn on_line(mut self, line: u64) -> Self {
        if let Some(problem) = self.problem_mut() {
            problem.place.line.get_or_insert(line);
        }
        self
    }

    /// Place, expectation and advice, of the errors that have them.
    pub fn problem(&self) -> Option<&Problem> {
        match self {
            Self::Usage(p) | Self::Config(p) | Self::Input(p) | Self::Diverged(p) | Self::Device(p) => Some(p),
            Self::Op { .. } | Self::Io { .. } | Self::Interrupted { .. } => None,
        }
    }

    fn problem_mut(&mut self) -> Option<&mut Problem> {
        match self {
            Self::Usage(p) | Self::Config(p) | Self::Input(p) | Self::Diverged(p) | Self::Device(p) => Some(p),
            Self::Op { .. } | Self::Io { .. } | Self::Interrupted { .. } => None,
        }
    }

    /// The exit code of the command line for this error: 1 a bug, 2 usage, 3 bad configuration, 4 bad model,
    /// tokenizer, data or checkpoint, 5 diverged, 6 device failure, 7 I/O, 128 + n for signal n.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Op { .. } => 1,
            Self::Usage(_) => 2,
            Self::Config(_) => 3,
            Self::Input(_) => 4,
            Self::Diverged(_) => 5,
            Self::Device(_) => 6,
            Self::Io { .. } => 7,
            Self::Interrupted { signal } => 128u8.saturating_add((*signal).clamp(0, 127) as u8),
        }
    }
}

impl Problem {
    fn boxed(place: Place, expected: impl Into<String>, got: impl Into<String>) -> Box<Self> {
        Box::new(Self { place, expected: expected.into(), got: got.into(), hint: String::new() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_says_where_what_and_what_to_do() {
        let error = Error::input(Place::file("data.jsonl").at_line(7).of("label"), "a non-empty string", "\"\"")
            .hint("give every row a label");
        assert_eq!(
            error.to_string(),
            "data.jsonl:7: label: expected a non-empty string, got \"\" (give every row a label)"
        );
        assert_eq!(error.exit_code(), 4);
        assert_eq!(Place::item("label").at_line(7).to_string(), "line 7: label");
    }

    #[test]
    fn a_file_that_is_missing_is_bad_input_and_a_full_disk_is_io() {
        let missing = Error::io("m", "read", io::Error::from(io::ErrorKind::NotFound));
        assert_eq!(missing.exit_code(), 4);
        let full = Error::io("m", "write", io::Error::from(io::ErrorKind::StorageFull));
        assert_eq!(full.exit_code(), 7);
        assert_eq!(Error::Interrupted { signal: 15 }.exit_code(), 143);
    }
}
