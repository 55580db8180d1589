//! The wires: one link for all nodes and the control plane, which routes, and an outside link behind it.
//!
//! ```text
//!  n1 eth0 --- n1 \
//!  n2 eth0 --- n2 - nodes  control  outside --- eth0 outside
//!  n3 eth0 --- n3 /
//! ```

use anyhow::{Result, ensure};

use super::address::{
    self, CONTROL, CONTROL_ETHERNET, EGRESS, NODES_LENGTH, OUTSIDE, OUTSIDE_LENGTH, ROUTER,
};
use super::place::{Machine, Place};
use crate::netns::{self, Netns};

/// The namespace of the server outside, and the router's device toward it.
pub const OUTSIDE_NAME: &str = "outside";
/// The device of every namespace but the router's.
pub const DEVICE: &str = "eth0";
/// The bridge that nodes are plugged into.
const BRIDGE: &str = "nodes";

/// Lays the control plane's and the outside network out, for `nodes` nodes to be plugged in.
pub fn lay_out(place: &Place) -> Result<()> {
    let control = create(place, &Machine::Control.to_string())?;
    let outside = create(place, OUTSIDE_NAME)?;
    forward(&control)?;
    control.ip(&format!(
        "link add {BRIDGE} address {CONTROL_ETHERNET} type bridge\n\
         address add {CONTROL}/{NODES_LENGTH} dev {BRIDGE}\n\
         link set {BRIDGE} up\n\
         route add {EGRESS} dev {BRIDGE}\n\
         link add {OUTSIDE_NAME} type veth peer name {DEVICE} netns {}\n\
         address add {ROUTER}/{OUTSIDE_LENGTH} dev {OUTSIDE_NAME}\n\
         link set {OUTSIDE_NAME} up",
        outside.name()
    ))?;
    outside.ip(&format!(
        "address add {OUTSIDE}/{OUTSIDE_LENGTH} dev {DEVICE}\n\
         link set {DEVICE} up\n\
         route add default via {ROUTER}"
    ))
}

/// Makes a node's namespace and plugs it in. `nodes` is how many there are.
pub fn plug_in(place: &Place, number: u8, nodes: u8) -> Result<()> {
    let machine = Machine::Node(number).to_string();
    let (control, node) = (control(place), create(place, &machine)?);
    forward(&node)?;
    control.ip(&format!(
        "link add {machine} type veth peer name {DEVICE} address {} netns {}\n\
         link set {machine} master {BRIDGE} up\n\
         route replace {} via {}",
        address::ethernet(number),
        node.name(),
        address::pods(number),
        address::node(number)
    ))?;
    let others = (1..=nodes).filter(|&other| other != number);
    let routes: String = others
        .map(|other| {
            format!(
                "\nroute add {} via {}",
                address::pods(other),
                address::node(other)
            )
        })
        .collect();
    node.ip(&format!(
        "address add {}/{NODES_LENGTH} dev {DEVICE}\n\
         link set {DEVICE} up\n\
         route add default via {CONTROL}{routes}",
        address::node(number)
    ))
}

/// Cuts a node's link. The namespace alone would not do: the kernel may take seconds to get to its devices, and
/// answers pings until then.
pub fn unplug(place: &Place, number: u8) -> Result<()> {
    let (control, machine) = (control(place), Machine::Node(number));
    // The node may have been unplugged already.
    let finished = control.try_run(&format!("ip link delete {machine}"))?;
    let gone = finished.status.success() || finished.stderr.contains("Cannot find device");
    ensure!(gone, "the link of {machine} cannot be cut: {finished}");
    Ok(())
}

/// Removes what is left of a node's network, once it is unplugged and nothing runs there.
pub fn remove(place: &Place, number: u8) {
    netns::delete(&place.own(Machine::Node(number)));
}

/// The control plane's namespace.
pub fn control(place: &Place) -> Netns {
    Netns::existing(&place.own(Machine::Control))
}

/// The outside server's namespace.
pub fn outside(place: &Place) -> Netns {
    Netns::existing(&place.own(OUTSIDE_NAME))
}

/// A namespace that stays until it is removed by its name.
fn create(place: &Place, what: &str) -> Result<Netns> {
    let netns = Netns::create(&place.own(what))?;
    netns.keep();
    Ok(netns)
}

fn forward(netns: &Netns) -> Result<()> {
    netns.sysctl("net.ipv4.ip_forward", "1")?;
    // Loose: the kernel's default may be strict, and a NAT's routes need not be symmetric.
    netns.sysctl("net.ipv4.conf.all.rp_filter", "2")?;
    netns.sysctl("net.ipv4.conf.default.rp_filter", "2")
}
