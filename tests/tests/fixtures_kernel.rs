//! Every fixture, in the kernel: the same outcome as on the host, byte for byte.

use anyhow::Result;
use nat_tests::fixtures::{
    compare,
    in_kernel::{self, Kernel},
    on_host,
    row::Row,
    rows,
};

#[test]
fn kernel_and_host_agree_on_every_fixture() -> Result<()> {
    let name = format!("natfix{}", std::process::id());
    let failures = Kernel::with(&name, |kernel| {
        let (able, unable): (Vec<_>, Vec<_>) = rows::all()
            .into_iter()
            .partition(|row| in_kernel::can_run(&row.case));
        println!(
            "{} rows, {} more on the host only",
            able.len(),
            unable.len()
        );
        Ok(able
            .iter()
            .filter_map(|row| failure(kernel, row))
            .collect::<Vec<_>>())
    })?;
    compare::assert_none(&failures);
    Ok(())
}

fn failure(kernel: &mut Kernel, row: &Row) -> Option<String> {
    let (host, expected) = (on_host::run(&row.case), &row.expected);
    let got = match kernel.run(&row.case) {
        Ok(got) => got,
        Err(error) => return Some(format!("{}: {error:#}", row.name)),
    };
    let mut lines = Vec::new();
    let hook = row.case.hook;
    let (action, mark) = (
        in_kernel::action(hook, expected.verdict),
        in_kernel::mark(hook, expected.verdict),
    );
    if (got.action, got.mark) != (action, mark) {
        lines.push(format!(
            "action {}, mark {:#x}, expected {action}, {mark:#x}",
            got.action as i32, got.mark
        ));
    }
    for (who, packet, tables) in [
        ("expected", &expected.packet, &expected.tables),
        ("host", &host.packet, &host.tables),
    ] {
        lines.extend(compare::packets(who, packet, "kernel", &got.packet));
        lines.extend(compare::tables(who, tables, "kernel", &got.tables));
    }
    (!lines.is_empty()).then(|| format!("{}:\n  {}", row.name, lines.join("\n  ")))
}
