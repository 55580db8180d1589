//! Short TCP connections, one after the other on a few threads: connect, one byte, close.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::mix::FIRST_DESTINATION;
use super::topology::Topology;

const PORT: u16 = 7000;
const THREADS: usize = 4;
const TIMEOUT: Duration = Duration::from_secs(3);

/// Connections that the pod completes in a second.
pub fn per_second(topology: &Topology, quick: bool) -> Result<f64> {
    let listener = topology
        .server
        .enter(|| TcpListener::bind(("0.0.0.0", PORT)))??;
    let length = Duration::from_millis(if quick { 500 } else { 2000 });
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| serve(&listener, &done));
        }
        let completed = topology.client.enter(|| load(length));
        done.store(true, Ordering::Relaxed);
        // Each of the serving threads waits for one more connection before it looks.
        let wake =
            || (0..THREADS).try_for_each(|_| TcpStream::connect(("127.0.0.1", PORT)).map(drop));
        topology.server.enter(wake)??;
        Ok(completed?? as f64 / length.as_secs_f64())
    })
}

/// Answers every connection with a byte and closes it first: the TIME-WAIT is then the server's,
/// and the pod may use the port again at once.
fn serve(listener: &TcpListener, done: &AtomicBool) {
    for stream in listener.incoming() {
        if done.load(Ordering::Relaxed) {
            return;
        }
        // A connection that breaks is the client's to report.
        let _ = stream.and_then(|mut stream| stream.write_all(b"."));
    }
}

/// Opens connections on some threads until the time is over; how many were completed.
fn load(length: Duration) -> Result<u64> {
    let deadline = Instant::now() + length;
    thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|_| scope.spawn(|| serially(deadline)))
            .collect();
        let join = |thread: thread::ScopedJoinHandle<'_, Result<u64>>| {
            thread
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        threads.into_iter().map(join).sum()
    })
}

fn serially(deadline: Instant) -> Result<u64> {
    let server = SocketAddr::from((FIRST_DESTINATION, PORT));
    let mut completed = 0;
    while Instant::now() < deadline {
        let mut stream = TcpStream::connect_timeout(&server, TIMEOUT).context("connecting")?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        stream
            .read_to_end(&mut Vec::with_capacity(8))
            .context("waiting for the end")?;
        completed += 1;
    }
    Ok(completed)
}
