//! What a machine's programs said last, to be printed with an error: the logs themselves go with the cluster.

use std::fs;
use std::path::{Path, PathBuf};

use super::place::{Machine, Place};

const LINES: usize = 8;
/// The kubelet prints whole objects in one line.
const LENGTH: usize = 400;

/// The ends of all logs of a machine.
pub fn ends(place: &Place, machine: Machine) -> String {
    let entries = fs::read_dir(place.logs(machine)).into_iter().flatten();
    let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "log"));
    files.sort();
    files.push(place.boot_log(machine));
    let ends: String = files.iter().map(|file| end(file)).collect();
    format!("the logs of {machine} end with:\n{ends}")
}

fn end(file: &Path) -> String {
    let text = fs::read_to_string(file).unwrap_or_default();
    let lines: Vec<_> = text.lines().collect();
    let last = &lines[lines.len().saturating_sub(LINES)..];
    let last: String = last
        .iter()
        .map(|line| format!("  {line:.LENGTH$}\n"))
        .collect();
    format!("{}:\n{last}", file.display())
}
