//! Inside a node: its PID 1, which starts containerd, kubelet and kube-proxy on a root of their own.

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use super::place::{Machine, Place};
use super::record::Record;
use super::root::{self, Root};
use super::supervisor::{Service, Supervisor};
use super::{address, machine};
use crate::process;

const CONTAINERD_SOCKET: &str = "/run/containerd/containerd.sock";
const CONTAINERD_START: Duration = Duration::from_secs(60);

/// What imports the image in the file that is named last, where kubelets look for images.
pub const IMPORT: (&str, [&str; 4]) = ("ctr", ["-n", "k8s.io", "images", "import"]);

/// What PID 1 of a node does.
pub fn run(place: &Place, number: u8) -> Result<()> {
    let name = Machine::Node(number);
    fs::write("/proc/sys/kernel/hostname", name.to_string())?;
    let programs = Record::read(place)?.programs;
    Root {
        disk: &place.root(number),
        programs: &programs,
        images: &place.images(),
    }
    .enter(&machine::group(place, name)?)?;
    let mut supervisor = Supervisor::new(Path::new("/var/log"))?;
    supervisor.start(Service::new(
        "containerd".into(),
        "--config /etc/containerd/config.toml",
    ))?;
    import_images(&supervisor)?;
    supervisor.start(kubelet(number))?;
    supervisor.start(kube_proxy(number))?;
    supervisor.supervise()
}

fn import_images(supervisor: &Supervisor) -> Result<()> {
    process::eventually(CONTAINERD_START, "containerd", || {
        UnixStream::connect(CONTAINERD_SOCKET).context("cannot talk to containerd")
    })?;
    for entry in fs::read_dir(root::IMAGES)? {
        let mut command = Command::new(IMPORT.0);
        command.args(IMPORT.1).arg(entry?.path());
        supervisor.run(&mut command, "import.log")?;
    }
    Ok(())
}

fn kubelet(number: u8) -> Service {
    Service::new(
        Path::new(root::PROGRAMS).join("kubelet"),
        &format!(
            "--config=/etc/kubernetes/kubelet.yaml
             --kubeconfig=/etc/kubernetes/kubelet.kubeconfig
             --hostname-override={}
             --node-ip={}
             --cert-dir=/var/lib/kubelet/pki
             --v=2",
            Machine::Node(number),
            address::node(number)
        ),
    )
}

fn kube_proxy(number: u8) -> Service {
    Service::new(
        Path::new(root::PROGRAMS).join("kube-proxy"),
        &format!(
            "--config=/etc/kubernetes/kube-proxy.yaml --hostname-override={} --v=2",
            Machine::Node(number)
        ),
    )
}
