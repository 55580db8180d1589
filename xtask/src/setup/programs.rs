//! The programs that building, demo, tests, benchmarks and clusters call.

use std::{
    path::Path,
    process::{Command, Stdio},
};

use anyhow::Result;

use crate::run;

/// A program, what it is for, and what brings it.
pub struct Need {
    pub name: &'static str,
    pub why: &'static str,
    /// Debian's package.
    pub package: &'static str,
    probe: Probe,
    /// The service that the package would start at every boot.
    service: Option<&'static str>,
}

enum Probe {
    Program,
    /// A module of the system's own Python; another on PATH may not have it.
    PythonModule(&'static str),
    /// Files that are on nobody's PATH, one of which will do.
    AnyFile(&'static [&'static str]),
}

const fn program(name: &'static str, package: &'static str, why: &'static str) -> Need {
    Need {
        name,
        why,
        package,
        probe: Probe::Program,
        service: None,
    }
}

const fn daemon(need: Need, service: &'static str) -> Need {
    Need {
        service: Some(service),
        ..need
    }
}

/// Everything but the BPF compiler and linker, which compiler.rs looks after.
pub const NEEDS: &[Need] = &[
    program("cc", "gcc", "links programs for the host"),
    program("g++", "g++", "links bpf-linker with LLVM"),
    program("ip", "iproute2", "lays out network namespaces and links"),
    program("ethtool", "ethtool", "sets the offloads of links"),
    program(
        "nft",
        "nftables",
        "the agent's one rule, and the peer to measure against",
    ),
    program("sysctl", "procps", "sets forwarding in namespaces"),
    program("bpftool", "bpftool", "shows what the kernel loaded"),
    program("tcpdump", "tcpdump", "shows packets when a test fails"),
    program("curl", "curl", "HTTP client of demo and tests"),
    daemon(
        program("nginx", "nginx-light", "HTTP server of demo and tests"),
        "nginx",
    ),
    program(
        "iperf3",
        "iperf3",
        "bulk TCP and UDP in tests and benchmarks",
    ),
    program("ping", "iputils-ping", "ICMP echo in demo and tests"),
    program("hping3", "hping3", "packets made to order in tests"),
    program(
        "nc.openbsd",
        "netcat-openbsd",
        "small TCP and UDP exchanges in tests",
    ),
    program("socat", "socat", "UDP from chosen ports in demo and tests"),
    daemon(
        program(
            "turnserver",
            "coturn",
            "STUN server that names the NAT's behaviour",
        ),
        "coturn",
    ),
    program("buildah", "buildah", "makes deploy/Dockerfile in a test"),
    Need {
        name: "scapy",
        why: "packets made to order in tests",
        package: "python3-scapy",
        probe: Probe::PythonModule("scapy"),
        service: None,
    },
];

/// What a cluster's nodes are made of, besides Kubernetes itself.
pub const CLUSTER_NEEDS: &[Need] = &[
    daemon(
        program(
            "containerd",
            "containerd",
            "runs the pods of a cluster's nodes",
        ),
        "containerd",
    ),
    program("runc", "runc", "starts containers for containerd"),
    Need {
        name: "CNI plugins",
        why: "connect the pods of a cluster's nodes",
        package: "containernetworking-plugins",
        probe: Probe::AnyFile(&[
            "/usr/lib/cni/ptp",
            "/usr/libexec/cni/ptp",
            "/opt/cni/bin/ptp",
        ]),
        service: None,
    },
    program("busybox", "busybox", "a shell and tools for test pods"),
    program("nsenter", "util-linux", "runs commands inside nodes"),
];

impl Need {
    pub fn is_met(&self) -> bool {
        match self.probe {
            Probe::Program => run::find_program(self.name).is_some(),
            Probe::PythonModule(module) => has_python_module(module),
            Probe::AnyFile(files) => files.iter().any(|file| Path::new(file).is_file()),
        }
    }
}

fn has_python_module(module: &str) -> bool {
    // find_spec does not run the module, which would take scapy half a second.
    let script = format!(
        "import importlib.util, sys; sys.exit(importlib.util.find_spec('{module}') is None)"
    );
    Command::new("/usr/bin/python3")
        .args(["-c", &script])
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

/// Debian's packages enable their services: tests start such programs themselves, and
/// after a reboot nothing may listen that nobody asked for. Only what was just
/// installed is turned off, not what somebody uses.
pub fn keep_daemons_off<'a>(installed: impl Iterator<Item = &'a str>) -> Result<()> {
    let services: Vec<_> = installed.filter_map(service_of).collect();
    if services.is_empty() || run::find_program("systemctl").is_none() {
        return Ok(());
    }
    eprintln!("turned off at boot: {}", services.join(", "));
    run::visibly(
        Command::new("systemctl")
            .args(["--quiet", "disable"])
            .args(services),
    )
}

fn all() -> impl Iterator<Item = &'static Need> {
    NEEDS.iter().chain(CLUSTER_NEEDS)
}

fn service_of(name: &str) -> Option<&'static str> {
    all().find(|need| need.name == name)?.service
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_have_a_service_to_keep_off() {
        assert_eq!(service_of("nginx"), Some("nginx"));
        assert_eq!(service_of("turnserver"), Some("coturn"));
        assert_eq!(service_of("curl"), None);
    }

    #[test]
    fn names_are_unique() {
        let mut names: Vec<_> = all().map(|need| need.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), all().count());
    }
}
