//! A proxy before an API server that is as unreliable as a test wants it to be.

use std::{
    io, mem,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context, Result};
use futures_util::{StreamExt, stream};
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Frame, Incoming},
    header,
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use kube::{Client, Config, client};
use serde_json::{Value, json};
use tokio::{net::TcpStream, sync::watch, time::sleep};

use super::{AGENT, Server, kubeconfig};

/// What becomes of requests and answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing: they are passed on.
    None,
    /// Connections are cut, and new ones, too.
    Cut,
    /// Watches end as the server itself ends them at times, and new ones wait.
    Held,
    /// Watches end, and new ones are answered with status 410.
    Gone,
    /// Watches have 410 in their stream, and end.
    GoneInStream,
    /// Every event of a watch comes twice.
    Twice,
    /// Every answer, and every event of a watch, comes so much later.
    Slow(Duration),
    /// Connections stay, and nothing comes any more.
    Silent,
}

#[derive(Debug, Default)]
struct Counts {
    lists: AtomicU32,
    expired: AtomicU32,
}

/// A proxy that speaks plain HTTP; it passes on what it is asked as the agents' ServiceAccount.
pub struct Proxy {
    address: SocketAddr,
    counts: Arc<Counts>,
    /// `None` at its end: the thread ends with it.
    fault: Option<watch::Sender<Fault>>,
    thread: Option<JoinHandle<()>>,
}

impl Proxy {
    /// Starts it. Call where the server can be reached.
    pub fn start(server: &Server) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        listener.set_nonblocking(true)?;
        let (fault, faults) = watch::channel(Fault::None);
        let counts = Arc::new(Counts::default());
        let (address, config) = (listener.local_addr()?, server.config(AGENT)?);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let inner = counts.clone();
        let thread = thread::spawn(move || {
            if let Err(error) = runtime.block_on(serve(listener, config, faults, inner)) {
                eprintln!("the proxy: {error:#}");
            }
        });
        Ok(Self {
            address,
            counts,
            fault: Some(fault),
            thread: Some(thread),
        })
    }

    /// The content of a file for `KUBECONFIG` that leads here.
    pub fn kubeconfig(&self) -> String {
        kubeconfig(&format!("http://{}", self.address), AGENT)
    }

    /// From now on this happens.
    pub fn set(&self, fault: Fault) {
        self.fault.iter().for_each(|sender| {
            sender.send_replace(fault);
        });
    }

    /// How many lists were asked for so far.
    pub fn lists(&self) -> u32 {
        self.counts.lists.load(Ordering::Relaxed)
    }

    /// How many watches ended by 410 so far, whoever said so.
    pub fn expired(&self) -> u32 {
        self.counts.expired.load(Ordering::Relaxed)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        drop(self.fault.take());
        // A panic there has been printed already.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// Serves until nobody can set another fault.
async fn serve(
    listener: TcpListener,
    config: Config,
    mut faults: watch::Receiver<Fault>,
    counts: Arc<Counts>,
) -> Result<()> {
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let way = Way {
        client: Client::try_from(config)?,
        faults: faults.clone(),
        counts,
    };
    loop {
        tokio::select! {
            accepted = listener.accept() => drop(tokio::spawn(way.clone().connection(accepted?.0))),
            changed = faults.changed() => if changed.is_err() { return Ok(()) },
        }
    }
}

type Body = UnsyncBoxBody<Bytes, io::Error>;

/// What a request's way depends on.
#[derive(Clone)]
struct Way {
    client: Client,
    faults: watch::Receiver<Fault>,
    counts: Arc<Counts>,
}

impl Way {
    /// Serves one connection until it is cut.
    async fn connection(self, stream: TcpStream) {
        let mut faults = self.faults.clone();
        let service = service_fn(|request| self.clone().answer(request));
        let served = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
        // Whatever goes wrong here is a cut connection to whoever asks.
        tokio::select! {
            _ = served => {}
            _ = faults.wait_for(|fault| *fault == Fault::Cut) => {}
        }
    }

    async fn answer(mut self, request: Request<Incoming>) -> Result<Response<Body>> {
        let query = request.uri().query().unwrap_or_default();
        let watches = query.split('&').any(|field| field == "watch=true");
        if !watches && request.method() == Method::GET {
            self.counts.lists.fetch_add(1, Ordering::Relaxed);
        }
        let waits = |fault: &Fault| *fault == Fault::Silent || watches && *fault == Fault::Held;
        let fault = *self.faults.wait_for(|fault| !waits(fault)).await?;
        match fault {
            Fault::Gone if watches => {
                self.counts.expired.fetch_add(1, Ordering::Relaxed);
                let status = Full::from(expired().to_string());
                let mut response = Response::new(status.map_err(io::Error::other).boxed_unsync());
                *response.status_mut() = StatusCode::GONE;
                return Ok(response);
            }
            Fault::Slow(pause) => sleep(pause).await,
            _ => {}
        }
        let (mut head, body) = self.pass_on(request).await?.into_parts();
        // The body's length is told, or not, as it is here.
        head.headers.remove(header::CONTENT_LENGTH);
        head.headers.remove(header::TRANSFER_ENCODING);
        let body = match watches && head.status.is_success() {
            true => self.watch(body),
            false => Full::new(body.collect().await?.to_bytes())
                .map_err(io::Error::other)
                .boxed_unsync(),
        };
        Ok(Response::from_parts(head, body))
    }

    async fn pass_on(&self, request: Request<Incoming>) -> Result<Response<client::Body>> {
        let (mut head, body) = request.into_parts();
        // Of the connection here, and of no other.
        for name in [header::HOST, header::AUTHORIZATION, header::CONTENT_LENGTH] {
            head.headers.remove(name);
        }
        let body = body.collect().await?.to_bytes();
        let request = Request::from_parts(head, client::Body::from(body));
        self.client.send(request).await.context("pass a request on")
    }

    fn watch(self, body: client::Body) -> Body {
        let watch = Watch {
            way: self,
            body,
            rest: Vec::new(),
            ended: false,
        };
        let lines = stream::unfold(watch, async |mut watch| Some((watch.next().await?, watch)));
        StreamBody::new(lines.map(|line| Ok(Frame::data(line)))).boxed_unsync()
    }
}

/// A watch on its way to whoever asked for it: an event a line.
struct Watch {
    way: Way,
    body: client::Body,
    /// What has come of a line that is not complete.
    rest: Vec<u8>,
    ended: bool,
}

impl Watch {
    /// The next line or two; `None` at its end.
    async fn next(&mut self) -> Option<Bytes> {
        while !self.ended {
            let fault = *self.way.faults.borrow_and_update();
            match fault {
                Fault::Held | Fault::Gone => return None,
                Fault::GoneInStream => {
                    self.ended = true;
                    self.way.counts.expired.fetch_add(1, Ordering::Relaxed);
                    return Some(line(&json!({"type": "ERROR", "object": expired()})));
                }
                Fault::Silent => {
                    self.way.faults.changed().await.ok()?;
                    continue;
                }
                Fault::None | Fault::Cut | Fault::Twice | Fault::Slow(_) => {}
            }
            let mut faults = self.way.faults.clone();
            let event = tokio::select! {
                changed = faults.changed() => {
                    changed.ok()?;
                    continue;
                }
                event = self.event() => event?,
            };
            match fault {
                Fault::Twice => return Some([event.as_slice(), &event].concat().into()),
                Fault::Slow(pause) => sleep(pause).await,
                _ => {}
            }
            return Some(event.into());
        }
        None
    }

    /// The server's next event. Safe to cancel.
    async fn event(&mut self) -> Option<Vec<u8>> {
        let length = loop {
            if let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
                break end + 1;
            }
            let frame = self.body.frame().await?.ok()?;
            self.rest.extend(frame.into_data().unwrap_or_default());
        };
        let rest = self.rest.split_off(length);
        let event = mem::replace(&mut self.rest, rest);
        let said: Value = serde_json::from_slice(&event).ok()?;
        if said["type"] == "ERROR" && said["object"]["code"] == 410 {
            self.way.counts.expired.fetch_add(1, Ordering::Relaxed);
        }
        Some(event)
    }
}

fn line(event: &Value) -> Bytes {
    format!("{event}\n").into()
}

/// What an API server says of a version that it has forgotten.
fn expired() -> Value {
    json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": "too old resource version: 1 (2)", "reason": "Expired", "code": 410,
    })
}
