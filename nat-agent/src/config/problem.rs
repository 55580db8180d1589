//! What is wrong with a file, where, and what to do.

use std::fmt;

/// A position in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// Line, from 1.
    pub line: u64,
    /// Column in characters, from 1.
    pub column: u64,
}

/// A position in the file and the field that stands there.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mark {
    /// Where it is written.
    pub place: Place,
    /// Its path, as `pools[0].addresses[1]`; empty for the file as a whole.
    pub field: String,
}

/// A value and where it was written.
#[derive(Clone, Debug)]
pub(super) struct At<T> {
    pub value: T,
    pub mark: Mark,
}

/// One thing that is wrong with a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The file's name as it was given.
    pub file: String,
    /// Where it is; `None` if the file could not be read at all.
    pub mark: Option<Mark>,
    /// What is wrong, and after a semicolon what to do.
    pub message: String,
}

impl Problem {
    pub(super) fn unreadable(file: String, error: &std::io::Error) -> Self {
        let message = match error.kind() {
            std::io::ErrorKind::InvalidData => "is not UTF-8 text; save it as UTF-8".to_owned(),
            _ => format!("cannot be read: {error}; check the path and its permissions"),
        };
        Self {
            file,
            mark: None,
            message,
        }
    }
}

impl Problem {
    /// Without its place, for what was not read from a file: `field: what is wrong; what to do`.
    pub(super) fn words(&self) -> String {
        match self.mark.as_ref().map(|mark| &mark.field) {
            Some(field) if !field.is_empty() => format!("{field}: {}", self.line()),
            _ => self.line(),
        }
    }

    /// The message in one line: a value that it quotes may have several.
    fn line(&self) -> String {
        self.message.replace(['\n', '\r'], " ")
    }
}

/// `FILE:LINE:COLUMN: field.path: what is wrong; what to do`.
impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.file)?;
        if let Some(Mark { place, field }) = &self.mark {
            write!(f, "{}:{}:", place.line, place.column)?;
            if !field.is_empty() {
                write!(f, " {field}:")?;
            }
        }
        write!(f, " {}", self.line())
    }
}

impl std::error::Error for Problem {}

/// The problems of one file, as they are found.
pub(super) struct Problems {
    file: String,
    found: Vec<Problem>,
}

impl Problems {
    pub fn new(file: &str) -> Self {
        Self {
            file: file.to_owned(),
            found: Vec::new(),
        }
    }

    pub fn add(&mut self, mark: Mark, message: impl Into<String>) {
        self.found.push(Problem {
            file: self.file.clone(),
            mark: Some(mark),
            message: message.into(),
        });
    }

    pub fn len(&self) -> usize {
        self.found.len()
    }

    pub fn is_empty(&self) -> bool {
        self.found.is_empty()
    }

    /// In the order of the file, whatever the order in which the rules ran.
    pub fn into_sorted(mut self) -> Vec<Problem> {
        self.found.sort_by(|a, b| {
            let place = |problem: &Problem| problem.mark.as_ref().map(|mark| mark.place);
            place(a).cmp(&place(b))
        });
        self.found
    }
}
