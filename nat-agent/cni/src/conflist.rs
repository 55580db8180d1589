//! The plugin's place in a network configuration list. The text is cut, not written anew: everything
//! else in it stays as it is, to the byte, and removing the plugin brings back what was there before.

use std::borrow::Cow;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::{NAME, call::VERSIONS};

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct List<'a> {
    #[serde(borrow, default)]
    cni_version: Cow<'a, str>,
    #[serde(borrow)]
    plugins: Vec<&'a RawValue>,
}

#[derive(Deserialize)]
struct Plugin<'a> {
    #[serde(borrow, rename = "type")]
    kind: Cow<'a, str>,
}

impl<'a> List<'a> {
    fn read(text: &'a str) -> Result<Self> {
        serde_json::from_str(text).context("it is no network configuration list")
    }

    /// Where the plugin is in the list.
    fn place(&self) -> Result<Option<usize>> {
        for (place, plugin) in self.plugins.iter().enumerate() {
            let plugin: Plugin<'_> = serde_json::from_str(plugin.get())
                .with_context(|| format!("plugin {} of it cannot be read", place + 1))?;
            if plugin.kind == NAME {
                return Ok(Some(place));
            }
        }
        Ok(None)
    }
}

/// The list with the plugin at its end; `None` if it has it already.
///
/// # Errors
/// The list cannot be read, or no plugin can be chained to it.
pub fn with_plugin(text: &str) -> Result<Option<String>> {
    let list = List::read(text)?;
    if list.place()?.is_some() {
        return Ok(None);
    }
    ensure!(
        VERSIONS.contains(&&*list.cni_version),
        "its cniVersion {:?} is not one of {}",
        list.cni_version,
        VERSIONS.join(", ")
    );
    let last = list
        .plugins
        .last()
        .context("it lists no plugin to come after")?;
    let (from, to) = span(text, last);
    let before = &text[..from];
    let space = &before[before.trim_end().len()..];
    let entry = format!(",{space}{{\"type\": \"{NAME}\"}}");
    Ok(Some([&text[..to], &entry, &text[to..]].concat()))
}

/// The list without the plugin; `None` if it does not have it.
///
/// # Errors
/// The list cannot be read, or the plugin is its first: then it is not as `with_plugin` made it.
pub fn without_plugin(text: &str) -> Result<Option<String>> {
    let list = List::read(text)?;
    let Some(place) = list.place()? else {
        return Ok(None);
    };
    let before = place.checked_sub(1);
    let before = before.context("nat-cni comes first in it, which nobody can have meant")?;
    let (_, from) = span(text, list.plugins[before]);
    let (_, to) = span(text, list.plugins[place]);
    Ok(Some([&text[..from], &text[to..]].concat()))
}

/// Where a part of the text begins and ends in it.
fn span(text: &str, part: &RawValue) -> (usize, usize) {
    let from = part.get().as_ptr() as usize - text.as_ptr() as usize;
    (from, from + part.get().len())
}

#[cfg(test)]
mod tests {
    use super::*;

    const KINDNET: &str = r#"
{
    "cniVersion": "0.3.1",
    "name": "kindnet",
    "plugins": [
    {
        "type": "ptp",
        "ipMasq": false,
        "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.244.1.0/24"}]]}
    },
    {
        "type": "portmap",
        "capabilities": {"portMappings": true}
    }
    ]
}
"#;

    #[test]
    fn it_comes_last_and_goes_without_a_trace() {
        let one_line = r#"{"plugins":[{"type":"bridge"}],"name":"\u0070","cniVersion":"1.1.0"}"#;
        for text in [KINDNET, one_line] {
            let with = with_plugin(text).unwrap().unwrap();
            let list: serde_json::Value = serde_json::from_str(&with).unwrap();
            let plugins = list["plugins"].as_array().unwrap();
            assert_eq!(plugins.last().unwrap()["type"], NAME);
            assert_eq!(with_plugin(&with).unwrap(), None, "twice is once");
            assert_eq!(without_plugin(&with).unwrap().as_deref(), Some(text));
            assert_eq!(without_plugin(text).unwrap(), None);
        }
        let with = with_plugin(KINDNET).unwrap().unwrap();
        assert!(
            with.contains("},\n    {\"type\": \"nat-cni\"}\n    ]"),
            "{with}"
        );
    }

    #[test]
    fn what_somebody_has_set_stays() {
        let text = r#"{"cniVersion": "1.0.0", "plugins": [{"type": "bridge"},
            {"timeout": 30, "type": "nat-cni"}, {"type": "portmap"}]}"#;
        assert_eq!(with_plugin(text).unwrap(), None);
        let without = without_plugin(text).unwrap().unwrap();
        let bare =
            r#"{"cniVersion": "1.0.0", "plugins": [{"type": "bridge"}, {"type": "portmap"}]}"#;
        assert_eq!(without, bare);
    }

    #[test]
    fn what_is_no_list_is_refused() {
        for (text, why) in [
            ("{", "no network configuration list"),
            (
                r#"{"cniVersion": "1.0.0", "type": "ptp"}"#,
                "no network configuration list",
            ),
            (
                r#"{"cniVersion": "1.0.0", "plugins": []}"#,
                "lists no plugin",
            ),
            (
                r#"{"cniVersion": "1.0.0", "plugins": [5]}"#,
                "plugin 1 of it",
            ),
            (r#"{"plugins": [{"type": "ptp"}]}"#, "cniVersion"),
            (
                r#"{"cniVersion": "0.2.0", "plugins": [{"type": "ptp"}]}"#,
                "0.2.0",
            ),
        ] {
            let error = format!("{:#}", with_plugin(text).unwrap_err());
            assert!(error.contains(why), "{text}: {error}");
        }
        assert!(without_plugin(r#"{"plugins": [{"type": "nat-cni"}]}"#).is_err());
    }
}
