//! One small UDP datagram to and fro, pod and server on one CPU: how long that takes.

use std::io::ErrorKind;
use std::net::UdpSocket;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::cpu;
use super::mix::FIRST_DESTINATION;
use super::topology::Topology;

const PORT: u16 = 7001;
const WARM_UP: usize = 1000;
const TIMEOUT: Duration = Duration::from_millis(500);

/// The median round trip, in microseconds.
pub fn median_microseconds(topology: &Topology, quick: bool) -> Result<f64> {
    let server = topology
        .server
        .enter(|| UdpSocket::bind(("0.0.0.0", PORT)))??;
    let client = topology
        .client
        .enter(|| UdpSocket::bind(("0.0.0.0", 0)))??;
    client.connect((FIRST_DESTINATION, PORT))?;
    let count = if quick { 5_000 } else { 20_000 };
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let echo = scope.spawn(|| echo(&server, &done));
        // A thread of its own: the caller must not stay pinned.
        let ping = scope.spawn(|| ping(&client, count));
        let times = ping
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        done.store(true, Ordering::Relaxed);
        echo.join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        let mut times = times?;
        times.sort();
        Ok(times[times.len() / 2].as_nanos() as f64 / 1e3)
    })
}

/// Sends back what comes until `done`.
fn echo(socket: &UdpSocket, done: &AtomicBool) -> Result<()> {
    cpu::pin(cpu::measuring()?)?;
    socket.set_read_timeout(Some(TIMEOUT / 5))?;
    let mut buffer = [0; 64];
    while !done.load(Ordering::Relaxed) {
        match socket.recv_from(&mut buffer) {
            Ok((length, from)) => drop(socket.send_to(&buffer[..length], from)?),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// The times of `count` round trips after some to warm up.
fn ping(socket: &UdpSocket, count: usize) -> Result<Vec<Duration>> {
    cpu::pin(cpu::measuring()?)?;
    socket.set_read_timeout(Some(TIMEOUT))?;
    let once = |_| {
        let start = Instant::now();
        socket.send(b"ping")?;
        socket.recv(&mut [0; 64]).context("no answer")?;
        Ok(start.elapsed())
    };
    (0..WARM_UP + count).map(once).skip(WARM_UP).collect()
}
