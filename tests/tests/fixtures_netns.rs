//! Every fixture that can be sent, through real devices: what comes out of the attached programs is
//! what the row says, byte for byte, and so are the tables.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result};
use nat_common::{reason::Reason, verdict::Verdict};
use nat_tests::fixtures::{
    compare,
    in_netns::{self, Mode, Node},
    on_host,
    row::Row,
    rows,
};

#[test]
fn frames_come_out_as_written() -> Result<()> {
    let failures = Node::with(&format!("nt{}", std::process::id()), |node| {
        let (rows, obstacles) = sendable();
        println!("{} rows, but not {obstacles:#?}", rows.len());
        let (runs, mut failures) = (in_netns::runs(rows), Vec::new());
        println!("{} packets, XDP's twice: native and generic", runs.len());
        for (row, mode) in runs {
            failures.extend(failure(node, &row, mode).with_context(|| row.name.clone())?);
        }
        Ok(failures)
    })?;
    compare::assert_none(&failures);
    Ok(())
}

/// The rows that can be sent, and how many cannot, by the reason.
fn sendable() -> (Vec<Row>, BTreeMap<&'static str, u32>) {
    let (mut rows, mut obstacles) = (rows::all(), BTreeMap::new());
    rows.retain(|row| {
        let obstacle = in_netns::obstacle(&row.case);
        obstacle.inspect(|why| *obstacles.entry(*why).or_insert(0) += 1);
        obstacle.is_none()
    });
    (rows, obstacles)
}

fn failure(node: &mut Node, row: &Row, mode: Mode) -> Result<Option<String>> {
    let (host, expected) = (on_host::run(&row.case), &row.expected);
    let got = node.run(row, mode)?;
    let mut lines = in_netns::differences(&in_netns::expected(row), &got.sightings);
    for (who, tables) in [("expected", &expected.tables), ("host", &host.tables)] {
        lines.extend(compare::tables(who, tables, "devices", &got.tables));
    }
    lines.extend(in_netns::leaks(&row.case.tables, &got.sightings));
    let text = format!("{}, {mode:?}:\n  {}", row.name, lines.join("\n  "));
    Ok((!lines.is_empty()).then_some(text))
}

/// Rows that all end the same way would prove nothing.
#[test]
fn the_rows_sent_reach_every_verdict_and_reason() {
    let verdicts = sendable().0.into_iter().map(|row| row.expected.verdict);
    let (dropped, others): (Vec<_>, Vec<_>) =
        verdicts.partition(|verdict| matches!(verdict, Verdict::Drop(_)));
    let kinds: BTreeSet<_> = others.iter().map(compare::kind).collect();
    let all = [
        "Alone",
        "Mark",
        "Neighbour",
        "Pass",
        "Peer",
        "Redirect",
        "Reply",
        "Stack",
    ];
    assert_eq!(kinds, all.map(String::from).into());
    let missing: Vec<_> = Reason::ALL
        .iter()
        .filter(|reason| !dropped.contains(&Verdict::Drop(**reason)))
        .collect();
    assert_eq!(
        missing,
        [&Reason::Unwritable],
        "memory does not run out when asked to"
    );
}
