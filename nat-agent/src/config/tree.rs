//! The YAML text as nodes, each with its line and column.
//!
//! A scalar stays the text that was written: what it means is its field's business, so `off` is not
//! false, a client may be called `1.10`, and `010` is not eight.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::options::NonFiniteFloatPolicy;
use serde_saphyr::{Location, RenderOptions, SnippetMode, Spanned, UserMessageFormatter};

use super::problem::{Mark, Place, Problems};

/// Nesting that no configuration needs: the reader calls itself for every level.
const MAX_DEPTH: usize = 16;

/// A value of the file.
pub(super) struct Node {
    pub place: Place,
    pub value: Value,
}

pub(super) enum Value {
    /// Nothing was written, or `null`.
    Nothing,
    Text(String),
    List(Vec<Node>),
    Map(Vec<(Key, Node)>),
}

pub(super) struct Key {
    pub place: Place,
    pub name: String,
}

/// Reads the text. What is not YAML, or has a key twice, is the only problem reported then: nothing
/// after it can be trusted.
pub(super) fn read(text: &str, problems: &mut Problems) -> Option<Node> {
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! { max_depth: MAX_DEPTH },
        non_finite_float_policy: NonFiniteFloatPolicy::PassThrough,
        with_snippet: false,
    };
    match serde_saphyr::from_str_with_options::<Spanned<Raw>>(text, options) {
        Ok(raw) => Some(node(raw, text)),
        Err(error) => {
            let (mark, message) = explain(&error);
            problems.add(mark, message);
            None
        }
    }
}

/// The fields of something that is not a text, with a name among them.
pub(super) fn named(name: &str, fields: &serde_json::Value) -> Node {
    let mut node = of(fields);
    if let Value::Map(entries) = &mut node.value {
        let key = Key {
            place: NOWHERE,
            name: "name".to_owned(),
        };
        let name = of(&serde_json::Value::from(name));
        entries.retain(|(key, _)| key.name != "name");
        entries.push((key, name));
    }
    node
}

const NOWHERE: Place = Place { line: 1, column: 1 };

fn of(value: &serde_json::Value) -> Node {
    use serde_json::Value as Json;
    let value = match value {
        Json::Null => Value::Nothing,
        Json::String(text) => Value::Text(text.clone()),
        Json::Bool(_) | Json::Number(_) => Value::Text(value.to_string()),
        Json::Array(items) => Value::List(items.iter().map(of).collect()),
        Json::Object(entries) => {
            let entry = |(name, value): (&String, &Json)| {
                let name = name.clone();
                let place = NOWHERE;
                (Key { place, name }, of(value))
            };
            Value::Map(entries.iter().map(entry).collect())
        }
    };
    Node {
        place: NOWHERE,
        value,
    }
}

fn explain(error: &serde_saphyr::Error) -> (Mark, String) {
    use serde_saphyr::Error;
    let place = error
        .location()
        .map_or(Place { line: 1, column: 1 }, |at| place(&at));
    let words = match error.without_snippet() {
        Error::DuplicateMappingKey { key: Some(key), .. } => {
            format!("`{key}` is given twice here; keep one")
        }
        Error::MultipleDocuments { .. } => {
            "a second document starts here; put everything into one".to_owned()
        }
        Error::Budget { .. } => {
            "is too deep or too long for a configuration; make it simpler".to_owned()
        }
        other => format!(
            "is not YAML: {}; mend it, nothing else was checked",
            library_words(other)
        ),
    };
    (
        Mark {
            place,
            field: String::new(),
        },
        words,
    )
}

/// The library's message, less the place: that is in front of ours already.
fn library_words(error: &serde_saphyr::Error) -> String {
    let mut rendering = RenderOptions::new(&UserMessageFormatter);
    rendering.snippets = SnippetMode::Off;
    let words = error.render_with_options(rendering);
    let words = words.split(" at line ").next().unwrap_or_default();
    words.lines().next().unwrap_or_default().trim().to_owned()
}

/// An empty document has no location: it starts where the file does.
fn place(location: &Location) -> Place {
    Place {
        line: location.line().max(1),
        column: location.column().max(1),
    }
}

/// What the YAML library hands over: it has already guessed at the type of an unquoted scalar.
enum Raw {
    Nothing,
    Text(String),
    /// An unquoted scalar that looks like a number or a boolean, printed back. Its real text is at
    /// its location.
    Guessed(String),
    List(Vec<Spanned<Raw>>),
    Map(Vec<(Spanned<String>, Spanned<Raw>)>),
}

fn node(raw: Spanned<Raw>, text: &str) -> Node {
    let value = match raw.value {
        Raw::Nothing => Value::Nothing,
        Raw::Text(written) => Value::Text(written),
        Raw::Guessed(printed) => {
            Value::Text(written(&raw.defined, text).map_or(printed, str::to_owned))
        }
        Raw::List(items) => Value::List(items.into_iter().map(|item| node(item, text)).collect()),
        Raw::Map(entries) => Value::Map(
            entries
                .into_iter()
                .map(|(key, value)| entry(key, value, text))
                .collect(),
        ),
    };
    Node {
        place: place(&raw.referenced),
        value,
    }
}

fn entry(key: Spanned<String>, value: Spanned<Raw>, text: &str) -> (Key, Node) {
    let key = Key {
        place: place(&key.referenced),
        name: key.value,
    };
    let mut value = node(value, text);
    // Nothing is nowhere: point at its key.
    if matches!(value.value, Value::Nothing) {
        value.place = key.place;
    }
    (key, value)
}

/// The text at a location.
fn written<'t>(location: &Location, text: &'t str) -> Option<&'t str> {
    let span = location.span();
    let start = usize::try_from(span.byte_offset()?).ok()?;
    let end = start.checked_add(usize::try_from(span.byte_len()?).ok()?)?;
    text.get(start..end)
        .map(str::trim)
        .filter(|text| !text.is_empty())
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(RawVisitor)
    }
}

struct RawVisitor;

impl<'de> Visitor<'de> for RawVisitor {
    type Value = Raw;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E>(self) -> Result<Raw, E> {
        Ok(Raw::Nothing)
    }

    fn visit_str<E>(self, text: &str) -> Result<Raw, E> {
        Ok(Raw::Text(text.to_owned()))
    }

    fn visit_bool<E>(self, value: bool) -> Result<Raw, E> {
        Ok(Raw::Guessed(value.to_string()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Raw, E> {
        Ok(Raw::Guessed(value.to_string()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Raw, E> {
        Ok(Raw::Guessed(value.to_string()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Raw, E> {
        Ok(Raw::Guessed(value.to_string()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Raw, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element()? {
            list.push(item);
        }
        Ok(Raw::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Raw, A::Error> {
        let mut map = Vec::new();
        while let Some(entry) = entries.next_entry()? {
            map.push(entry);
        }
        Ok(Raw::Map(map))
    }
}
