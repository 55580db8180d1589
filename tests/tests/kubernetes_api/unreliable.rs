//! An API server that forgets what watches ask for, goes away, is slow, or says things twice, before an agent with
//! real programs. Whatever it does, pods that stay are served all the time, and one that goes is gone.

use std::{
    net::{SocketAddrV4, UdpSocket},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, ensure};
use nat_tests::{
    agent::Agent,
    api_server::{Fault, Proxy},
    lab::{self, EGRESS, Lab, SERVER},
    process::eventually,
    programs::{self, Chatter, TcpEcho, UdpEcho},
};
use serde_json::{Value, json};

use super::{Lab as Api, on_node};

const SOON: Duration = Duration::from_secs(30);
const ECHO: SocketAddrV4 = SocketAddrV4::new(SERVER, 9000);
/// How long an agent may take to find a connection dead.
const SILENCE: Duration = Duration::from_secs(150);
const CONNECTIONS: usize = 4;
const STAYS: &str = "shop/stays";
const GOES: &str = "shop/goes";
const COMES: &str = "shop/comes";
/// How long nothing has to happen.
const QUIET: Duration = Duration::from_secs(6);
/// Lists in that time, of all kinds of objects, at least a second apart in the end.
const LISTS: u32 = 5 * 10;

/// A lab with three pods. The first one talks all the time; the second goes, and the third comes.
struct Bed {
    agent: Agent,
    proxy: Proxy,
    api: Api,
    chatter: Chatter,
    socket: UdpSocket,
    seen: SocketAddrV4,
}

impl Bed {
    async fn start(lab: &Lab) -> Result<Self> {
        let api = Api::start().await?;
        let pool = json!({"addresses": [EGRESS[0]], "allowedNamespaces": {}});
        api.pool("office", pool).await?;
        let proxy = Proxy::start(&api.server)?;
        api.pod(STAYS, 1, 11, "office").await?;
        let agent = Agent::start_on(lab, "sweepInterval: 500ms\n", "n1", &proxy.kubeconfig())?;
        // Until then nothing holds a pod's packets back on this node.
        eventually(SOON, STAYS, || agent.status()?.client(STAYS).map(drop))?;
        let socket = programs::udp_socket(&lab.hosts[0], 4000, ECHO)?;
        let seen = eventually(SOON, STAYS, || programs::udp_ask(&socket))?;
        ensure!(*seen.ip() == EGRESS[0], "{STAYS} is seen as {seen}");
        let chatter = Chatter::start(&lab.hosts[0], ECHO, CONNECTIONS)?;
        let bed = Self {
            agent,
            proxy,
            api,
            chatter,
            socket,
            seen,
        };
        bed.well()?;
        Ok(bed)
    }

    /// A fault; the rest of the log and the state of health that begin with it.
    fn suffers(&self, fault: Fault) -> Result<Quiet> {
        // A state of health is known by the second in which it began.
        thread::sleep(Duration::from_secs(1));
        let health = self.agent.status()?.0["health"].clone();
        let from = self.agent.log().len();
        self.proxy.set(fault);
        Ok(Quiet { from, health })
    }

    /// Nothing was applied since then, and nothing was ever wrong.
    fn was_quiet(&self, quiet: &Quiet) -> Result<()> {
        self.stays()?;
        let log = self.agent.log();
        let log = log.get(quiet.from..).unwrap_or_default();
        ensure!(!log.contains("configuration applied"), "it flapped:\n{log}");
        self.was_well(quiet)
    }

    fn was_well(&self, quiet: &Quiet) -> Result<()> {
        let health = &self.agent.status()?.0["health"];
        let log = self.agent.log();
        ensure!(*health == quiet.health, "{health}:\n{log}");
        Ok(())
    }

    /// The flows of the pod that stays go on, and have the ports that they had.
    fn stays(&self) -> Result<()> {
        self.chatter.wait_rounds(10)?;
        ensure!(programs::udp_ask(&self.socket)? == self.seen);
        let flows = self.agent.status()?.flows(STAYS)?;
        ensure!(flows > CONNECTIONS as u64, "{flows} flows are left");
        Ok(())
    }

    fn well(&self) -> Result<()> {
        eventually(SOON, "all to be well", || self.agent.status()?.is_well())
    }

    fn serves(&self, path: &str) -> Result<()> {
        eventually(SOON, path, || self.agent.status()?.client(path).map(drop))
    }

    fn serves_no_longer(&self, path: &str) -> Result<()> {
        eventually(SOON, path, || {
            ensure!(self.agent.status()?.client(path).is_err(), "it is a client");
            Ok(())
        })
    }

    fn says(&self, words: &str) -> Result<()> {
        eventually(SOON, words, || {
            let problems = self.agent.status()?.problems();
            ensure!(problems.contains(words), "{problems}");
            Ok(())
        })
    }

    /// Ends it: no connection was lost.
    fn end(mut self) -> Result<()> {
        let talks = self.chatter.finish()?;
        ensure!(talks.len() == CONNECTIONS);
        self.agent.terminate()
    }

    /// A pod comes, is served, and goes again.
    async fn another_comes_and_goes(&self) -> Result<()> {
        self.arrive(COMES, 13).await?;
        self.serves(COMES)?;
        self.api.delete(COMES).await?;
        self.serves_no_longer(COMES)
    }

    async fn arrive(&self, path: &str, number: u8) -> Result<()> {
        self.api.pod(path, 1, number, "office").await
    }
}

/// How things were when a fault began.
struct Quiet {
    from: usize,
    health: Value,
}

/// Watches are answered by 410, for a while: what is new is found by lists, which become rarer.
async fn watches_expire(bed: &Bed, fault: Fault) -> Result<()> {
    let (lists, expired) = (bed.proxy.lists(), bed.proxy.expired());
    let begun = Instant::now();
    let quiet = bed.suffers(fault)?;
    bed.chatter.wait_rounds(10)?;
    eventually(SOON, "watches to expire again and again", || {
        ensure!(bed.proxy.expired() >= expired + 15);
        Ok(())
    })?;
    thread::sleep(QUIET.saturating_sub(begun.elapsed()));
    let lists = bed.proxy.lists() - lists;
    ensure!(lists < LISTS, "{lists} lists in {:?}", begun.elapsed());
    bed.was_quiet(&quiet)?;
    bed.another_comes_and_goes().await?;
    bed.was_well(&quiet)?;
    bed.proxy.set(Fault::None);
    bed.stays()
}

/// A pod is deleted while connections are cut.
async fn a_deletion_is_missed(bed: &Bed) -> Result<()> {
    bed.arrive(GOES, 12).await?;
    bed.serves(GOES)?;
    let quiet = bed.suffers(Fault::Cut)?;
    bed.says("has not answered since")?;
    bed.api.delete(GOES).await?;
    thread::sleep(Duration::from_secs(2));
    bed.agent.status()?.client(GOES)?;
    bed.stays()?;
    bed.proxy.set(Fault::None);
    bed.serves_no_longer(GOES)?;
    bed.well()?;
    bed.stays()?;
    applied(bed, &quiet, 1)
}

/// The server itself has forgotten what watches ask for: it was started anew, and etcd was compacted.
async fn the_server_forgets(bed: &mut Bed) -> Result<()> {
    bed.arrive(GOES, 12).await?;
    bed.serves(GOES)?;
    let expired = bed.proxy.expired();
    let quiet = bed.suffers(Fault::Held)?;
    bed.api.delete(GOES).await?;
    bed.api.server.compact()?;
    bed.api.server.stop_api()?;
    bed.api.server.start_api()?;
    bed.api.server.ready().await?;
    ensure!(bed.proxy.expired() == expired);
    bed.agent.status()?.client(GOES)?;
    bed.proxy.set(Fault::None);
    bed.serves_no_longer(GOES)?;
    ensure!(bed.proxy.expired() > expired, "the server said no 410");
    bed.well()?;
    bed.stays()?;
    applied(bed, &quiet, 1)
}

/// How often something was applied since then.
fn applied(bed: &Bed, quiet: &Quiet, wanted: usize) -> Result<()> {
    let log = bed.agent.log();
    let log = log.get(quiet.from..).unwrap_or_default();
    let count = log.matches("configuration applied").count();
    ensure!(count == wanted, "{count} times:\n{log}");
    Ok(())
}

/// Slow is not silent: what is new comes late.
async fn the_server_is_slow(bed: &mut Bed) -> Result<()> {
    let quiet = bed.suffers(Fault::Slow(Duration::from_secs(2)))?;
    thread::sleep(QUIET);
    bed.was_quiet(&quiet)?;
    bed.another_comes_and_goes().await?;
    bed.was_well(&quiet)?;
    // An agent that starts now serves what was pinned until it has listed all.
    bed.agent.kill()?;
    bed.agent.restart()?;
    bed.stays()?;
    bed.well()?;
    bed.proxy.set(Fault::None);
    bed.stays()
}

/// Each event comes twice, deletions as well.
async fn events_come_twice(bed: &Bed) -> Result<()> {
    let quiet = bed.suffers(Fault::Twice)?;
    bed.another_comes_and_goes().await?;
    bed.was_well(&quiet)?;
    let quiet = bed.suffers(Fault::Twice)?;
    thread::sleep(QUIET);
    bed.was_quiet(&quiet)?;
    bed.proxy.set(Fault::None);
    bed.stays()
}

/// Connections stay, and nothing comes: it is noticed when not even a bookmark came for a while.
async fn silence(lab: &Lab) -> Result<()> {
    let bed = Bed::start(lab).await?;
    bed.suffers(Fault::Silent)?;
    eventually(SILENCE, "the agent to notice", || {
        let problems = bed.agent.status()?.problems();
        ensure!(problems.contains("has not answered since"), "{problems}");
        Ok(())
    })?;
    bed.stays()?;
    bed.proxy.set(Fault::None);
    bed.well()?;
    bed.end()
}

async fn faults(lab: &Lab) -> Result<()> {
    let mut bed = Bed::start(lab).await?;
    watches_expire(&bed, Fault::Gone).await?;
    watches_expire(&bed, Fault::GoneInStream).await?;
    a_deletion_is_missed(&bed).await?;
    the_server_forgets(&mut bed).await?;
    the_server_is_slow(&mut bed).await?;
    events_come_twice(&bed).await?;
    bed.end()
}

/// Runs a test in a lab of three pods, with servers for them.
fn in_a_lab(test: impl AsyncFnOnce(&Lab) -> Result<()> + Send) -> Result<()> {
    let lab = lab::pods(3).build()?;
    let _servers = (
        TcpEcho::start(&lab.server, ECHO)?,
        UdpEcho::start(&lab.server, ECHO)?,
    );
    on_node(&lab, test)?;
    lab.finish()
}

/// Silence takes a minute and a half to be noticed, which nobody waits for alone.
#[test]
fn pods_outlive_whatever_the_api_server_does() -> Result<()> {
    thread::scope(|scope| {
        let silent = scope.spawn(|| in_a_lab(silence).context("silence"));
        let others = in_a_lab(faults);
        silent
            .join()
            .map_err(|_| anyhow!("silence panicked"))?
            .and(others)
    })
}
