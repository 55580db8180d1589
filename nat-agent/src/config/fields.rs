//! Typed values out of a node; unknown, missing and malformed fields become problems.
//!
//! A problem never stops the reading: what is left out is `None` or missing from the list, and the
//! caller goes on with the next field.

use std::fmt::Write as _;
use std::str::FromStr;
use std::time::Duration;

use super::problem::{At, Mark, Problems};
use super::tree::{Node, Value};

/// What a field's reader says about the text of a scalar: the value, or what is wrong; what to do.
pub(super) type Read<T> = Result<T, String>;

/// A mapping whose fields are known.
pub(super) struct Fields<'t> {
    mark: Mark,
    entries: Vec<(&'static str, &'t Node)>,
}

impl<'t> Fields<'t> {
    /// The fields of a mapping. Those not `known` become problems, at their names.
    pub fn open(
        node: &'t Node,
        field: String,
        known: &[&'static str],
        problems: &mut Problems,
    ) -> Option<Self> {
        let mark = Mark {
            place: node.place,
            field,
        };
        let Value::Map(found) = &node.value else {
            let message = format!(
                "is {}, not fields; write {}, each on its own line",
                kind(node),
                names(known)
            );
            problems.add(mark, message);
            return None;
        };
        let mut entries = Vec::new();
        for (key, value) in found {
            let message = match known.iter().find(|name| **name == key.name) {
                None => unknown(&key.name, known),
                // The YAML library takes `1` and `"1"` for different keys, and might others.
                Some(name) if entries.iter().any(|(given, _)| given == name) => {
                    "is given twice; keep one".to_owned()
                }
                Some(name) => {
                    entries.push((*name, value));
                    continue;
                }
            };
            problems.add(
                Mark {
                    place: key.place,
                    field: join(&mark.field, &key.name),
                },
                message,
            );
        }
        Some(Self { mark, entries })
    }

    /// Where the mapping starts.
    pub fn mark(&self) -> &Mark {
        &self.mark
    }

    /// Where a field's value starts, or the mapping if it is left out.
    pub fn mark_of(&self, name: &'static str) -> Mark {
        let place = self.get(name).map_or(self.mark.place, |node| node.place);
        Mark {
            place,
            field: join(&self.mark.field, name),
        }
    }

    /// A scalar that may be left out.
    pub fn optional<T>(
        &self,
        name: &'static str,
        problems: &mut Problems,
        read: impl Fn(&str) -> Read<T>,
    ) -> Option<At<T>> {
        let node = self.get(name)?;
        scalar(node, join(&self.mark.field, name), problems, read)
    }

    /// A scalar that must be there.
    pub fn required<T>(
        &self,
        name: &'static str,
        problems: &mut Problems,
        read: impl Fn(&str) -> Read<T>,
    ) -> Option<At<T>> {
        self.require(name, problems);
        self.optional(name, problems, read)
    }

    /// A list of scalars; empty if it is left out.
    pub fn scalars<T>(
        &self,
        name: &'static str,
        problems: &mut Problems,
        read: impl Fn(&str) -> Read<T>,
    ) -> Vec<At<T>> {
        let items = self.items(name, problems);
        items
            .into_iter()
            .filter_map(|(node, field)| scalar(node, field, problems, &read))
            .collect()
    }

    /// The items of a list with their paths; empty if it is left out.
    pub fn items(&self, name: &'static str, problems: &mut Problems) -> Vec<(&'t Node, String)> {
        let Some(node) = self.get(name) else {
            return Vec::new();
        };
        let field = join(&self.mark.field, name);
        let Value::List(items) = &node.value else {
            let mark = Mark {
                place: node.place,
                field,
            };
            problems.add(
                mark,
                format!(
                    "is {}, not a list; write it as [a, b] or with `- ` before each item",
                    kind(node)
                ),
            );
            return Vec::new();
        };
        items
            .iter()
            .enumerate()
            .map(|(i, item)| (item, format!("{field}[{i}]")))
            .collect()
    }

    /// The fields within a field that may be left out.
    pub fn section(
        &self,
        name: &'static str,
        known: &[&'static str],
        problems: &mut Problems,
    ) -> Option<Fields<'t>> {
        Self::open(
            self.get(name)?,
            join(&self.mark.field, name),
            known,
            problems,
        )
    }

    /// Refuses that a field is missing, or an empty list.
    pub fn require(&self, name: &'static str, problems: &mut Problems) {
        let (place, message) = match self.get(name) {
            None => (self.mark.place, "is missing; add it"),
            Some(Node {
                value: Value::List(items),
                place,
            }) if items.is_empty() => (*place, "is an empty list; it needs at least one item"),
            Some(_) => return,
        };
        problems.add(
            Mark {
                place,
                field: join(&self.mark.field, name),
            },
            message,
        );
    }

    /// Refuses a field that is none in this kind of file.
    pub fn refuse(&self, name: &'static str, why: &str, problems: &mut Problems) {
        if self.get(name).is_some() {
            problems.add(self.mark_of(name), format!("{why}; remove it"));
        }
    }

    fn get(&self, name: &'static str) -> Option<&'t Node> {
        self.entries
            .iter()
            .find(|(known, _)| *known == name)
            .map(|(_, node)| *node)
    }
}

fn scalar<T>(
    node: &Node,
    field: String,
    problems: &mut Problems,
    read: impl Fn(&str) -> Read<T>,
) -> Option<At<T>> {
    let mark = Mark {
        place: node.place,
        field,
    };
    let outcome = match &node.value {
        Value::Text(text) => read(text),
        Value::Nothing => Err("has no value; write one, or remove the line".to_owned()),
        Value::List(_) | Value::Map(_) => Err(format!("is {}; write a single value", kind(node))),
    };
    match outcome {
        Ok(value) => Some(At { value, mark }),
        Err(message) => {
            problems.add(mark, message);
            None
        }
    }
}

/// A whole number between two, the bounds included.
pub(super) fn number<T>(least: T, most: T) -> impl Fn(&str) -> Read<T>
where
    T: Copy + FromStr + PartialOrd + std::fmt::Display,
{
    move |text| match text.parse::<T>() {
        Ok(value) if value >= least && value <= most => Ok(value),
        _ => Err(format!(
            "`{text}` is not a whole number from {least} to {most}; write one"
        )),
    }
}

/// A time with its unit.
pub(super) fn duration(text: &str) -> Read<Duration> {
    let units = "write a number with its unit, as in 500ms, 120s, 5m or 2h";
    humantime::parse_duration(text).map_err(|_| format!("`{text}` is not a time; {units}"))
}

/// A time of whole seconds between two, the bounds included: the tables keep seconds.
pub(super) fn seconds(least: Duration, most: Duration) -> impl Fn(&str) -> Read<Duration> {
    move |text| match duration(text)? {
        time if time.subsec_nanos() != 0 => Err(format!(
            "`{text}` is not whole seconds; round it to seconds"
        )),
        time => within(text, time, least, most),
    }
}

/// Refuses a time that is not between two, the bounds included.
pub(super) fn within(
    text: &str,
    time: Duration,
    least: Duration,
    most: Duration,
) -> Read<Duration> {
    if time >= least && time <= most {
        return Ok(time);
    }
    let [least, most] = [least, most].map(humantime::format_duration);
    Err(format!(
        "`{text}` is not from {least} to {most}; write a time between them"
    ))
}

/// One of a few words.
pub(super) fn word<T: Copy>(words: &'static [(&'static str, T)]) -> impl Fn(&str) -> Read<T> {
    move |text| match words.iter().find(|(word, _)| *word == text) {
        Some((_, value)) => Ok(*value),
        None => Err(format!(
            "`{text}` is none of its values; write {}",
            one_of(words.iter().map(|(word, _)| *word))
        )),
    }
}

fn unknown(name: &str, known: &[&'static str]) -> String {
    let close = known
        .iter()
        .map(|known| {
            (
                strsim::damerau_levenshtein(&name.to_lowercase(), &known.to_lowercase()),
                known,
            )
        })
        .filter(|(distance, known)| *distance <= known.len().div_ceil(3))
        .min();
    match close {
        Some((_, close)) => format!("is not a field; did you mean `{close}`?"),
        None => format!(
            "is not a field; remove it, the fields here are {}",
            names(known)
        ),
    }
}

fn kind(node: &Node) -> &'static str {
    match node.value {
        Value::Nothing => "empty",
        Value::Text(_) => "a single value",
        Value::List(_) => "a list",
        Value::Map(_) => "a group of fields",
    }
}

fn join(field: &str, name: &str) -> String {
    if field.is_empty() {
        name.to_owned()
    } else {
        format!("{field}.{name}")
    }
}

/// `a, b and c`.
fn names(known: &[&str]) -> String {
    enumerate(known.iter().copied(), "and")
}

/// `a, b or c`.
fn one_of<'a>(words: impl Iterator<Item = &'a str>) -> String {
    enumerate(words, "or")
}

fn enumerate<'a>(words: impl Iterator<Item = &'a str>, last: &str) -> String {
    let words: Vec<_> = words.collect();
    let mut text = String::new();
    for (i, word) in words.iter().enumerate() {
        let before = match i {
            0 => String::new(),
            _ if i + 1 == words.len() => format!(" {last} "),
            _ => ", ".to_owned(),
        };
        // Writing into a String cannot fail.
        let _ = write!(text, "{before}{word}");
    }
    text
}
