//! The control plane: etcd and the three servers of Kubernetes, in one machine without a root of its own.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use nix::mount::MsFlags;

use super::address::{API_PORT, CONTROL, SERVICES};
use super::place::{Machine, Place};
use super::record::Record;
use super::root;
use super::supervisor::{Service, Supervisor};
use super::{kubectl, machine};

/// Several seconds on two idle cores.
const START: Duration = Duration::from_secs(120);
const ETCD: &str = "http://127.0.0.1:2379";

/// What PID 1 of the control plane does.
pub fn run(place: &Place) -> Result<()> {
    // What is unmounted on this machine must go here, too: a namespace that is deleted would live on otherwise.
    root::mount(
        None,
        Path::new("/"),
        "",
        MsFlags::MS_REC | MsFlags::MS_SLAVE,
        "",
    )?;
    // Its own: by this machine's the programs would not find themselves.
    root::mount(
        Some("proc"),
        Path::new("/proc"),
        "proc",
        MsFlags::empty(),
        "",
    )?;
    let programs = Record::read(place)?.programs;
    let mut supervisor = Supervisor::new(&place.logs(Machine::Control))?;
    for (name, arguments) in [
        ("etcd", etcd(place)),
        ("kube-apiserver", api_server(place)),
        ("kube-controller-manager", controller_manager(place)),
        ("kube-scheduler", scheduler(place)),
    ] {
        supervisor.start(Service::new(programs.join(name), &arguments))?;
    }
    supervisor.supervise()
}

/// Starts the control plane and waits until the API server answers.
pub fn start(place: &Place) -> Result<()> {
    fs::create_dir_all(place.logs(Machine::Control))?;
    machine::start(place, Machine::Control)?;
    machine::eventually(
        place,
        Machine::Control,
        START,
        "an answer of the API server",
        || kubectl::run(place, &["get", "--raw", "/readyz"], "").map(drop),
    )
}

fn etcd(place: &Place) -> String {
    format!(
        "--name control
             --data-dir {}
             --unsafe-no-fsync
             --listen-client-urls {ETCD}
             --advertise-client-urls {ETCD}
             --listen-peer-urls http://127.0.0.1:2380
             --log-level warn",
        place.machine(Machine::Control).join("etcd").display()
    )
}

fn api_server(place: &Place) -> String {
    let pki = place.pki();
    let pki = pki.display();
    format!(
        "--etcd-servers={ETCD}
             --bind-address=0.0.0.0
             --advertise-address={CONTROL}
             --secure-port={API_PORT}
             --service-cluster-ip-range={SERVICES}
             --authorization-mode=Node,RBAC
             --enable-admission-plugins=NodeRestriction
             --allow-privileged=true
             --client-ca-file={pki}/ca.crt
             --tls-cert-file={pki}/apiserver.crt
             --tls-private-key-file={pki}/apiserver.key
             --kubelet-client-certificate={pki}/apiserver-kubelet-client.crt
             --kubelet-client-key={pki}/apiserver-kubelet-client.key
             --kubelet-certificate-authority={pki}/ca.crt
             --kubelet-preferred-address-types=InternalIP
             --service-account-issuer=https://kubernetes.default.svc
             --service-account-key-file={pki}/service-accounts.pub
             --service-account-signing-key-file={pki}/service-accounts.key
             --cert-dir={}
             --v=1",
        place.machine(Machine::Control).join("apiserver").display()
    )
}

fn controller_manager(place: &Place) -> String {
    let pki = place.pki();
    let pki = pki.display();
    format!(
        "{}
             --use-service-account-credentials
             --service-account-private-key-file={pki}/service-accounts.key
             --root-ca-file={pki}/ca.crt
             --cluster-signing-cert-file={pki}/ca.crt
             --cluster-signing-key-file={pki}/ca.key
             --allocate-node-cidrs=false
             --node-monitor-period=1s
             --node-monitor-grace-period=20s
             --v=1",
        client(place, "controller-manager")
    )
}

fn scheduler(place: &Place) -> String {
    format!("{} --v=1", client(place, "scheduler"))
}

/// What controller manager and scheduler are told alike.
fn client(place: &Place, name: &str) -> String {
    let kubeconfig = place.pki().join(format!("{name}.kubeconfig"));
    format!(
        "--kubeconfig={0}
         --authentication-kubeconfig={0}
         --authorization-kubeconfig={0}
         --leader-elect=false
         --bind-address=127.0.0.1
         --cert-dir={1}",
        kubeconfig.display(),
        place.machine(Machine::Control).join(name).display()
    )
}
