//! What the agent says of itself.

use crate::{
    bpf::links,
    desired::Desired,
    facts::Facts,
    report::{DeviceReport, HealthState, Hook, HookReport, Mode, Report, Role},
    snapshot::{self, Snapshot},
};

/// Records what is wrong now; `since` moves only when the state does.
pub fn update(report: &mut Report, problems: Vec<String>) {
    let state = if problems.is_empty() {
        HealthState::Ok
    } else {
        HealthState::Degraded
    };
    if state != report.health.state {
        report.health.since = crate::report::unix_now();
    }
    report.health.state = state;
    report.health.problems = problems;
}

/// The devices that programs are on, or should be.
pub fn devices(desired: &Desired, facts: &Facts, snapshot: &Snapshot) -> Vec<DeviceReport> {
    let mut devices: Vec<DeviceReport> = Vec::new();
    // Of devices whose pods ask for nothing there may be many, and nothing to be said.
    let known = |attachment: &&links::Attachment| desired.devices.contains_key(&attachment.ifindex);
    for attachment in desired.attachments.iter().filter(known) {
        let hook = hook(attachment);
        match devices
            .iter_mut()
            .find(|device| device.name == attachment.device)
        {
            Some(device) => device.hooks.push(hook),
            None => devices.push(DeviceReport {
                name: attachment.device.clone(),
                ifindex: attachment.ifindex,
                role: role(snapshot, facts, &attachment.device),
                hooks: vec![hook],
                note: desired.notes.get(&attachment.device).cloned(),
            }),
        }
    }
    devices
}

fn hook(attachment: &links::Attachment) -> HookReport {
    let (hook, mode) = match attachment.hook {
        links::Hook::XdpNative => (Hook::Xdp, Mode::Native),
        links::Hook::XdpGeneric => (Hook::Xdp, Mode::Generic),
        links::Hook::Ingress => (Hook::TcxIngress, Mode::Tcx),
        links::Hook::Egress => (Hook::TcxEgress, Mode::Tcx),
    };
    HookReport {
        program: attachment.program.to_owned(),
        hook,
        mode,
    }
}

fn role(snapshot: &Snapshot, facts: &Facts, name: &str) -> Role {
    let named = snapshot.devices.iter().find(|device| device.name == name);
    match named.map(|device| device.role) {
        Some(snapshot::Role::Outside) => Role::Outside,
        Some(snapshot::Role::Inside) => Role::Inside,
        None if facts
            .links
            .get(name)
            .is_some_and(|link| link.kind == crate::facts::Kind::Veth) =>
        {
            Role::Client
        }
        None => Role::Inside,
    }
}
