//! Whose packets arrive outside, as whom and when.

use std::net::{IpAddr, SocketAddrV4, UdpSocket};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::node::address;
use crate::background::Background;
use crate::lab::BEYOND;
use crate::netns::Netns;
use crate::process::lock;

/// Whom pods talk to.
pub const DESTINATION: SocketAddrV4 = SocketAddrV4::new(BEYOND, 4000);

/// When a pod's packets were seen first.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    translated: Option<Instant>,
    untranslated: Option<Instant>,
}

/// A server that notes whose packets come in.
pub struct Outside {
    seen: Arc<Mutex<Vec<Seen>>>,
    _server: Background,
}

impl Outside {
    /// Listens for the packets of so many pods.
    pub fn listen(namespace: &Netns, pods: usize) -> Result<Self> {
        let socket = namespace.enter(|| UdpSocket::bind(DESTINATION))??;
        socket.set_read_timeout(Some(Duration::from_millis(100)))?;
        let seen = Arc::new(Mutex::new(vec![Seen::default(); pods]));
        let notes = seen.clone();
        let server = Background::start(move |_| receive(&socket, &notes));
        Ok(Self {
            seen,
            _server: server,
        })
    }

    /// Forgets what was seen.
    pub fn forget(&self) {
        lock(&self.seen).fill(Seen::default());
    }

    /// When the pod's first translated packet came.
    pub fn translated(&self, pod: usize) -> Result<Instant> {
        lock(&self.seen)[pod].translated.context("none came")
    }

    /// Whether a packet came as the pod sent it.
    pub fn untranslated(&self, pod: usize) -> Result<Instant> {
        lock(&self.seen)[pod].untranslated.context("none came")
    }

    /// An error while a pod's packets do not come translated.
    pub fn all_translated(&self) -> Result<()> {
        let seen = lock(&self.seen);
        let served = seen.iter().filter(|seen| seen.translated.is_some()).count();
        ensure!(served == seen.len(), "{served} of {} pods are", seen.len());
        Ok(())
    }

    /// When the first translated packet of the last pod came.
    pub fn last_translated(&self) -> Result<Instant> {
        let seen = lock(&self.seen);
        let last = seen.iter().filter_map(|seen| seen.translated).max();
        last.context("none came")
    }
}

fn receive(socket: &UdpSocket, seen: &Mutex<Vec<Seen>>) {
    let mut bytes = [0; 4];
    let Ok((4, from)) = socket.recv_from(&mut bytes) else {
        return;
    };
    let now = Instant::now();
    let pod = u32::from_be_bytes(bytes) as usize;
    if let Some(seen) = lock(seen).get_mut(pod) {
        let first = if from.ip() == IpAddr::V4(address(pod)) {
            &mut seen.untranslated
        } else {
            &mut seen.translated
        };
        first.get_or_insert(now);
    }
}
