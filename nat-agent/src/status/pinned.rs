//! The pinned maps of an agent, or in plain words why they cannot be had.

use std::{fs, io};

use anyhow::{Context, Result, bail};
use nat_common::abi::LAYOUT_VERSION;

use crate::bpf::{pins::Pins, tables::Tables};

/// Opens the maps.
///
/// # Errors
/// Nothing is pinned, it is another version's, or it may not be read: with what to do.
pub fn open(pins: &Pins) -> Result<Tables> {
    let directory = pins.directory().display();
    match fs::metadata(pins.map("REPORT")) {
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            bail!("{directory} may be read by root only: run natctl as root (sudo)")
        }
        Err(_) => bail!(absent(pins)),
    }
    Tables::open(pins).with_context(|| {
        format!(
            "the maps under {directory} cannot be read (natctl needs root; an agent that is just \
             starting has not pinned all of them yet; maps of another build of nat-agent need the \
             natctl that came with it)"
        )
    })
}

/// Why there are no maps.
fn absent(pins: &Pins) -> String {
    let directory = pins.directory().display();
    if let Some(version) = other_version(pins) {
        return format!(
            "{directory} holds maps of layout {version}, this natctl reads v{LAYOUT_VERSION}: use the \
             natctl that came with the nat-agent that made them"
        );
    }
    format!(
        "no nat-agent has run with --bpffs {directory}: nothing is pinned there.\n\
         Start one with `nat-agent --config FILE`, or name the directory it was given with --bpffs DIR.\n\
         (`ip netns exec` hides what is mounted under /sys: use `nsenter --net=/run/netns/NAME natctl ...`)"
    )
}

fn other_version(pins: &Pins) -> Option<String> {
    let ours = format!("v{LAYOUT_VERSION}");
    let names = fs::read_dir(pins.directory()).ok()?.flatten();
    let mut names = names.filter_map(|entry| entry.file_name().into_string().ok());
    names.find(|name| *name != ours && name.starts_with('v') && name[1..].parse::<u32>().is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_pinned_is_said_plainly() {
        let error = open(&Pins::new("/nonexistent/natctl"))
            .unwrap_err()
            .to_string();
        assert!(
            error.starts_with("no nat-agent has run with --bpffs /nonexistent/natctl"),
            "{error}"
        );
    }

    #[test]
    fn another_versions_maps_are_named() {
        let directory = std::env::temp_dir().join(format!("natctl-pinned-{}", std::process::id()));
        fs::create_dir_all(directory.join("v999")).unwrap();
        let error = open(&Pins::new(&directory)).unwrap_err().to_string();
        fs::remove_dir_all(&directory).unwrap();
        assert!(error.contains("maps of layout v999"), "{error}");
    }
}
