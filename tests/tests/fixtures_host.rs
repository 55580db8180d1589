//! Every fixture, on the host.

use std::{collections::BTreeSet, fs, path::Path};

use nat_common::{reason::Reason, verdict::Verdict};
use nat_tests::fixtures::{compare, on_host, row::Row, rows};

#[test]
fn every_fixture_comes_out_as_written() {
    let rows = rows::all();
    let failures: Vec<_> = rows.iter().filter_map(failure).collect();
    println!("{} rows", rows.len());
    compare::assert_none(&failures);
}

fn failure(row: &Row) -> Option<String> {
    let (got, expected) = (on_host::run(&row.case), &row.expected);
    let mut lines = Vec::new();
    if got.verdict != expected.verdict {
        lines.push(format!(
            "verdict {:?}, expected {:?}",
            got.verdict, expected.verdict
        ));
    }
    lines.extend(compare::packets(
        "expected",
        &expected.packet,
        "got",
        &got.packet,
    ));
    lines.extend(compare::tables(
        "expected",
        &expected.tables,
        "got",
        &got.tables,
    ));
    (!lines.is_empty()).then(|| format!("{}:\n  {}", row.name, lines.join("\n  ")))
}

#[test]
fn no_two_rows_have_one_name() {
    let rows = rows::all();
    assert_eq!(rows::duplicates(&rows), Vec::<&str>::new());
}

#[test]
fn every_reason_drops_a_packet_of_some_row() {
    let rows = rows::all();
    let dropped = rows.iter().filter_map(|row| match row.expected.verdict {
        Verdict::Drop(reason) => Some(reason),
        _ => None,
    });
    let dropped: BTreeSet<Reason> = dropped.collect();
    let missing: Vec<_> = Reason::ALL
        .iter()
        .filter(|reason| !dropped.contains(reason))
        .collect();
    assert!(missing.is_empty(), "{missing:?}");
}

const MANUAL: &str = include_str!("../../docs/conformance.md");
/// Where the tests are that the manual names, below the workspace.
const SOURCES: &[&str] = &[
    "tests/tests",
    "nat-common/tests/properties",
    "nat-agent/src",
    "nat-agent/src/config",
    "nat-agent/tests",
];

#[test]
fn every_row_that_the_manual_names_exists() {
    let names: Vec<String> = rows::all().into_iter().map(|row| row.name).collect();
    // Names are the quoted texts of a table's last column: the proof.
    let proofs = MANUAL.lines().filter_map(|line| line.split(" | ").nth(4));
    let quoted: Vec<&str> = proofs
        .flat_map(|proof| proof.split('"').skip(1).step_by(2))
        .collect();
    assert!(quoted.len() > 20, "{quoted:?}");
    let missing: Vec<_> = quoted
        .iter()
        .filter(|text| {
            let (start, rest) = text.split_once("...").unwrap_or((text, "..."));
            !names
                .iter()
                .any(|name| name == *text || rest.is_empty() && name.starts_with(start))
        })
        .collect();
    assert!(missing.is_empty(), "{missing:?}");
}

#[test]
fn every_test_that_the_manual_names_exists() {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let files = SOURCES
        .iter()
        .flat_map(|directory| fs::read_dir(workspace.join(directory)).expect("a directory"));
    let texts: String = files
        .filter_map(|file| fs::read_to_string(file.ok()?.path()).ok())
        .collect();
    let named = MANUAL.split('`').skip(1).step_by(2);
    let tests: Vec<&str> = named
        .filter_map(|name| Some(name.rsplit_once("::")?.1))
        .filter(|name| *name != "x")
        .collect();
    assert!(tests.len() > 40, "{tests:?}");
    let missing: Vec<_> = tests
        .iter()
        .filter(|name| !texts.contains(&format!("fn {name}(")))
        .collect();
    assert!(missing.is_empty(), "{missing:?}");
}
