//! A node's disk: its configuration, what identifies it, and the CNI plugins.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::place::{Machine, Place};
use super::record::Cni;
use super::{address, pki};

/// Where packages put the CNI plugins: Debian's first.
const PLUGIN_PLACES: [&str; 3] = ["/usr/lib/cni", "/usr/libexec/cni", "/opt/cni/bin"];
/// The ones that a node needs.
const PLUGINS: [&str; 4] = ["bridge", "host-local", "loopback", "ptp"];

/// Files of a node's configuration: where they go, and what is in them.
const CONFIGURATION: [(&str, &str); 4] = [
    (
        "etc/containerd/config.toml",
        include_str!("../../cluster/containerd.toml"),
    ),
    (
        "etc/kubernetes/kubelet.yaml",
        include_str!("../../cluster/kubelet.yaml"),
    ),
    (
        "etc/kubernetes/kube-proxy.yaml",
        include_str!("../../cluster/kube-proxy.yaml"),
    ),
    // There are no names to look up: what has to have one finds it in /etc/hosts.
    ("etc/resolv.conf", ""),
];
const USERS: [(&str, &str); 3] = [
    (
        "etc/passwd",
        "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/usr/sbin/nologin\n",
    ),
    ("etc/group", "root:x:0:\nnogroup:x:65534:\n"),
    (
        "etc/nsswitch.conf",
        "passwd: files\ngroup: files\nhosts: files dns\n",
    ),
];
/// The name by which container runtimes find networks in order.
const CNI_FILE: &str = "etc/cni/net.d/10-pods.conflist";

/// Writes a new node's disk.
pub fn provision(place: &Place, number: u8, cni: Cni) -> Result<()> {
    let disk = place.root(number);
    for (path, content) in CONFIGURATION.iter().chain(&USERS) {
        write(&disk.join(path), content)?;
    }
    let name = Machine::Node(number);
    write(
        &disk.join("etc/hosts"),
        &format!("127.0.0.1 localhost\n{} {name}\n", address::node(number)),
    )?;
    write(&disk.join("etc/hostname"), &format!("{name}\n"))?;
    write(&disk.join("etc/machine-id"), &format!("{number:032x}\n"))?;
    write(
        &disk.join(CNI_FILE),
        &cni.conflist().replace("POD_CIDR", &address::pods(number)),
    )?;
    let kubernetes = disk.join("etc/kubernetes");
    for user in ["kubelet", "kube-proxy"] {
        let kubeconfig = pki::kubeconfig("pki/ca.crt", &format!("pki/{user}"));
        write(&kubernetes.join(format!("{user}.kubeconfig")), &kubeconfig)?;
    }
    for (from, to) in pki::node_files(number) {
        write(
            &kubernetes.join("pki").join(to),
            &fs::read_to_string(place.pki().join(from))?,
        )?;
    }
    install_plugins(&disk.join("opt/cni/bin"))?;
    for directory in ["tmp", "var/tmp"] {
        fs::create_dir_all(disk.join(directory))?;
        fs::set_permissions(disk.join(directory), fs::Permissions::from_mode(0o1777))?;
    }
    fs::create_dir_all(place.logs(name))?;
    Ok(())
}

fn install_plugins(target: &Path) -> Result<()> {
    let complete = |place: &PathBuf| PLUGINS.iter().all(|plugin| place.join(plugin).is_file());
    let source = PLUGIN_PLACES.map(PathBuf::from).into_iter().find(complete);
    let source = source
        .context("the CNI plugins are not installed (Debian: containernetworking-plugins)")?;
    fs::create_dir_all(target)?;
    for plugin in PLUGINS {
        fs::copy(source.join(plugin), target.join(plugin))?;
    }
    Ok(())
}

fn write(path: &Path, content: &str) -> Result<()> {
    fs::create_dir_all(path.parent().unwrap_or(path))?;
    fs::write(path, content).with_context(|| path.display().to_string())
}
