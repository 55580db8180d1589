//! Every fixture, on the host.

use std::collections::BTreeSet;

use nat_common::{reason::Reason, verdict::Verdict};
use nat_tests::fixtures::{compare, on_host, row::Row, rows};

#[test]
fn every_fixture_comes_out_as_written() {
    let rows = rows::all();
    let failures: Vec<_> = rows.iter().filter_map(failure).collect();
    println!("{} rows", rows.len());
    assert!(
        failures.is_empty(),
        "{} of {} rows:\n{}",
        failures.len(),
        rows.len(),
        failures.join("\n")
    );
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
