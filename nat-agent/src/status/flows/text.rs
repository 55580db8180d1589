//! The sessions for a person.

use std::io::{self, Write};

use super::{Flows, flow::Flow};
use crate::status::{
    table::{self, left, right},
    text::{DOWN, Style, plural, since},
    units,
};

/// Writes the list.
///
/// # Errors
/// The writer's.
pub fn write(out: &mut impl Write, flows: &Flows<'_>, style: Style) -> io::Result<()> {
    if !flows.agent_running {
        let since = since(flows.agent_heartbeat, flows.time);
        writeln!(
            out,
            "nat-agent is {}{since}. {DOWN}",
            style.bad("NOT RUNNING")
        )?;
    }
    if flows.matched == 0 {
        return writeln!(out, "No sessions.");
    }
    let columns = [
        left("PROTOCOL"),
        left("CLIENT"),
        left("INSIDE"),
        left("EGRESS"),
        left("REMOTE"),
        left("STATE"),
        right("AGE"),
        right("IDLE"),
        right("ENDS IN"),
        right("PACKETS OUT"),
        right("BYTES OUT"),
        right("PACKETS IN"),
        right("BYTES IN"),
    ];
    table::write(out, &columns, flows.flows.iter().map(row))?;
    let shown = flows.flows.len() as u64;
    if shown < flows.matched {
        return writeln!(
            out,
            "{shown} of {}; a higher --limit shows more.",
            sessions(flows.matched)
        );
    }
    writeln!(out, "{}.", sessions(shown))
}

fn sessions(count: u64) -> String {
    plural(count, "session", "sessions")
}

fn row(flow: &Flow<'_>) -> [String; 13] {
    let left = match flow.left_seconds {
        Some(0) => "now".into(),
        Some(left) => units::duration(left),
        None => "-".into(),
    };
    let (packets_in, bytes_in) = match flow.r#in {
        Some(traffic) => (traffic.packets.to_string(), units::bytes(traffic.bytes)),
        None => ("-".into(), "-".into()),
    };
    [
        flow.protocol.into(),
        flow.client.to_string(),
        flow.inside.to_string(),
        flow.egress.to_string(),
        flow.remote.to_string(),
        flow.state.name().into(),
        units::duration(flow.age_seconds),
        units::duration(flow.idle_seconds),
        left,
        flow.out.packets.to_string(),
        units::bytes(flow.out.bytes),
        packets_in,
        bytes_in,
    ]
}

#[cfg(test)]
mod tests {
    use nat_common::{
        abi::Half,
        packet::transport::{ICMP, TCP, UDP},
    };

    use super::*;
    use crate::status::{
        directory::Directory,
        example::{TIME, golden},
        flows::flow::tests::{directory, reader, session},
    };

    fn example(directory: &Directory) -> Flows<'_> {
        let reader = reader(directory);
        let whole = |protocol, client| {
            let (key, forward, reverse) = session(protocol, client);
            reader.flow(&key, &forward, Some(&reverse))
        };
        let (key, forward, _) = session(UDP, 1);
        let silent = reader.flow(
            &key,
            &forward,
            Some(&Half {
                created: 900,
                ..Half::default()
            }),
        );
        let (key, forward, _) = session(TCP, 7);
        let half = reader.flow(&key, &forward, None);
        Flows {
            schema: 1,
            version: "0.1.0",
            bpffs: "/sys/fs/bpf/natctl".into(),
            time: TIME,
            agent_running: true,
            agent_heartbeat: Some(TIME - 3),
            matched: 5,
            flows: vec![whole(ICMP, 0), whole(TCP, 0), half, whole(UDP, 1), silent],
        }
    }

    fn text(flows: &Flows<'_>) -> String {
        let mut out = Vec::new();
        write(&mut out, flows, Style { colour: false }).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_list() {
        golden("flows.txt", &text(&example(&directory())));
    }

    #[test]
    fn json() {
        let json = serde_json::to_string_pretty(&example(&directory())).unwrap();
        golden("flows.json", &format!("{json}\n"));
    }

    #[test]
    fn cut_short_while_the_agent_is_down() {
        let directory = directory();
        let mut flows = example(&directory);
        flows.flows.truncate(1);
        flows.matched = 262_144;
        flows.agent_running = false;
        flows.agent_heartbeat = Some(TIME - 192);
        golden("flows-down.txt", &text(&flows));
    }

    #[test]
    fn none() {
        let directory = directory();
        let flows = Flows {
            matched: 0,
            flows: vec![],
            ..example(&directory)
        };
        assert_eq!(text(&flows), "No sessions.\n");
    }
}
