//! Answers the kubelet's probes, or anybody's, over HTTP: `/livez` and `/readyz`.
//!
//! It runs in the agent's own thread, so an answer already proves that this thread turns.

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use http_body_util::Full;
use hyper::{
    Request, Response, StatusCode,
    body::{Bytes, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinHandle,
    time::timeout,
};

/// How long a probe may take: a connection that says nothing must not be kept.
const PATIENCE: Duration = Duration::from_secs(10);
/// Reports that may be missing before the agent is taken to be stuck.
const REPORTS: u32 = 3;
/// Silence that is always forgiven: a busy machine, a slow sweep.
const FORGIVEN: Duration = Duration::from_secs(60);

/// What the agent says of itself, for the probes.
#[derive(Debug)]
struct State {
    heard: Instant,
    /// Until when it has to be heard of again.
    silence: Duration,
    /// Why it is not ready, while it is not.
    unready: Option<String>,
}

/// The agent's side.
#[derive(Clone, Debug)]
pub struct Health(Arc<Mutex<State>>);

impl Default for Health {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(State {
            heard: Instant::now(),
            silence: FORGIVEN,
            unready: Some("starting".to_owned()),
        })))
    }
}

impl Health {
    /// The agent's loop turns, and turns again within `pause`. `unready` says why the node is not
    /// served as it should be; `None`: it is.
    pub fn turn(&self, pause: Duration, unready: Option<String>) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *state = State {
            heard: Instant::now(),
            silence: FORGIVEN.max(pause * REPORTS),
            unready,
        };
    }

    fn answer(&self, path: &str) -> (StatusCode, String) {
        let state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let silent = state.heard.elapsed();
        if !matches!(path, "/livez" | "/readyz") {
            return (StatusCode::NOT_FOUND, "ask /livez or /readyz".to_owned());
        }
        if silent > state.silence {
            let words = format!("stuck: nothing was done for {} s", silent.as_secs());
            return (StatusCode::SERVICE_UNAVAILABLE, words);
        }
        match &state.unready {
            Some(why) if path == "/readyz" => (StatusCode::SERVICE_UNAVAILABLE, why.clone()),
            _ => (StatusCode::OK, "ok".to_owned()),
        }
    }
}

/// Ends with this.
#[derive(Debug)]
pub struct Server(JoinHandle<()>);

impl Drop for Server {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Serves the probes at an address. Call within a tokio runtime.
///
/// # Errors
/// The address cannot be listened at.
pub async fn serve(address: SocketAddr, health: Health) -> Result<Server> {
    let listener = TcpListener::bind(address)
        .await
        .with_context(|| format!("listen at {address} for probes: give another by --health"))?;
    Ok(Server(tokio::spawn(async move {
        loop {
            if let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(timeout(PATIENCE, connection(stream, health.clone())));
            }
        }
    })))
}

async fn connection(stream: TcpStream, health: Health) {
    let service = service_fn(async |request: Request<Incoming>| {
        let (status, words) = health.answer(request.uri().path());
        let mut response = Response::new(Full::new(Bytes::from(words + "\n")));
        *response.status_mut() = status;
        Ok::<_, Infallible>(response)
    });
    // Whoever asked may be gone: that is no trouble of ours.
    drop(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .keep_alive(false)
            .serve_connection(TokioIo::new(stream), service)
            .await,
    );
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[test]
    fn the_truth_is_told() {
        let health = Health::default();
        assert_eq!(health.answer("/livez").0, StatusCode::OK);
        assert_eq!(health.answer("/readyz").0, StatusCode::SERVICE_UNAVAILABLE);
        health.turn(Duration::from_secs(5), None);
        assert_eq!(health.answer("/readyz").0, StatusCode::OK);
        health.turn(Duration::from_secs(5), Some("no nft".to_owned()));
        let (status, words) = health.answer("/readyz");
        assert_eq!(
            (status, words.as_str()),
            (StatusCode::SERVICE_UNAVAILABLE, "no nft")
        );
        assert_eq!(health.answer("/livez").0, StatusCode::OK);
        assert_eq!(health.answer("/").0, StatusCode::NOT_FOUND);
    }

    #[test]
    fn a_stuck_agent_is_neither_ready_nor_alive() {
        let health = Health::default();
        health.turn(Duration::ZERO, None);
        let long_ago = Instant::now().checked_sub(FORGIVEN + Duration::from_secs(1));
        health.0.lock().unwrap().heard = long_ago.unwrap();
        for path in ["/livez", "/readyz"] {
            assert_eq!(health.answer(path).0, StatusCode::SERVICE_UNAVAILABLE);
        }
    }

    #[tokio::test]
    async fn probes_speak_http() {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = free.local_addr().unwrap();
        drop(free);
        let _server = serve(address, Health::default()).await.unwrap();
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = b"GET /livez HTTP/1.1\r\nHost: node\r\n\r\n";
        stream.write_all(request).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(
            answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("\r\n\r\nok\n"),
            "{answer}"
        );
    }
}
