//! Sockets that send as pods, each through its pod's own link.

use std::net::{SocketAddrV4, UdpSocket};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use socket2::{Domain, Protocol, Socket, Type};

use super::node::{Node, address, device};
use super::outside::DESTINATION;
use crate::background::Background;

const PORT: u16 = 4000;
/// How often a pod sends while its first translated packet is waited for.
const ONE: Duration = Duration::from_millis(1);
/// How often each sends while all are.
const ALL: Duration = Duration::from_millis(20);

/// A socket for each pod.
pub struct Sockets(Vec<UdpSocket>);

impl Sockets {
    /// Opens as many.
    pub fn open(node: &Node, count: usize) -> Result<Self> {
        let open = || (0..count).map(socket).collect::<Result<_>>();
        Ok(Self(node.pods.enter(open)??))
    }

    /// Sends from one pod while the value lives.
    pub fn one(&self, pod: usize) -> Result<Background> {
        let socket = self.0.get(pod).context("no such pod")?.try_clone()?;
        Ok(send(vec![(pod, socket)], ONE))
    }

    /// Sends from all pods while the value lives.
    pub fn all(&self) -> Result<Background> {
        let sockets = self.0.iter().enumerate();
        let sockets = sockets.map(|(pod, socket)| Ok((pod, socket.try_clone()?)));
        Ok(send(sockets.collect::<Result<_>>()?, ALL))
    }
}

fn socket(pod: usize) -> Result<UdpSocket> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
    socket.bind_device(Some(device(pod).as_bytes()))?;
    socket.bind(&SocketAddrV4::new(address(pod), PORT).into())?;
    // What is refused on the way must not stop the sender.
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

/// Sends from all of them, over and over.
fn send(sockets: Vec<(usize, UdpSocket)>, every: Duration) -> Background {
    Background::start(move |_| {
        for (pod, socket) in &sockets {
            // What the node refuses comes back as an error of the next call.
            let _ = socket.send_to(&(*pod as u32).to_be_bytes(), DESTINATION);
        }
        thread::sleep(every);
    })
}
