//! The agent's own report: what only it knows (its health, how its programs are
//! attached), written as JSON into the REPORT map so
//! that `natctl` can read it when the agent is gone.

use std::{
    io,
    path::Path,
    process,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, ensure};
use nat_common::abi::{self, REPORT_BYTES};
use serde::{Deserialize, Serialize};

use crate::bpf::map::Map;

/// Version of the report's fields; grows when one changes its meaning or goes.
pub const SCHEMA: u32 = 1;

/// Problems a report has room for when it must be shortened.
const PROBLEMS: usize = 32;
/// Cluster ranges, and pods, that are kept then.
const LISTED: usize = 64;
/// Characters of a problem or a note that are kept then.
const SENTENCE: usize = 300;

/// What the agent says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Report {
    /// [`SCHEMA`] of the writer.
    pub schema: u32,
    /// The agent's version.
    pub version: String,
    /// Its process.
    pub pid: u32,
    /// When it started, Unix seconds.
    pub started: u64,
    /// Its configuration file.
    pub config: String,
    /// Where its pins are.
    pub bpffs: String,
    /// How it is.
    pub health: Health,
    /// When this was written, Unix seconds.
    pub heartbeat: u64,
    /// Seconds between two sweeps, rounded up; it reports at least as often.
    pub sweep_interval: u64,
    /// Where programs are attached.
    pub devices: Vec<DeviceReport>,
    /// Networks that are never translated to, whichever pool a client has.
    pub cluster_ranges: Vec<String>,
    /// What it knows of Kubernetes, where that is its source.
    pub kubernetes: Option<Kubernetes>,
    /// Whether anything was left out for want of room.
    pub shortened: bool,
}

/// How the agent is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Health {
    /// In a word.
    pub state: HealthState,
    /// Since when, Unix seconds.
    pub since: u64,
    /// What is wrong, in plain words.
    pub problems: Vec<String>,
}

/// The agent's health in a word.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum HealthState {
    /// Everything that is wanted is applied.
    #[default]
    Ok,
    /// Something is not; the problems say what.
    #[serde(other)]
    Degraded,
}

/// A device that programs are attached to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct DeviceReport {
    /// The link's name.
    pub name: String,
    /// Its number.
    pub ifindex: u32,
    /// What it is for.
    pub role: Role,
    /// The programs.
    pub hooks: Vec<HookReport>,
    /// What a person should know of it, e.g. why XDP is not used.
    pub note: Option<String>,
}

/// What the agent knows of Kubernetes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Kubernetes {
    /// The node's name there.
    pub node: String,
    /// Since when the API server has not answered, Unix seconds; `None` while it does.
    pub silent_since: Option<u64>,
    /// The kinds of objects that may have changed since without the agent's knowing.
    pub stale: Vec<String>,
    /// Pods that are not served as they ask, and what to do.
    pub pods: Vec<PodReport>,
    /// How many pods ask for nothing, and are left alone; null where there is no guard, and nobody
    /// looks for them.
    pub left_alone: Option<u64>,
}

/// A pod that is not served as it asks.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodReport {
    /// `namespace/name`.
    pub pod: String,
    /// In a word, as the Event has it.
    pub reason: String,
    /// What is wrong and what to do.
    pub message: String,
}

/// A program that is attached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HookReport {
    /// Its name in the object.
    pub program: String,
    /// Where.
    pub hook: Hook,
    /// How.
    pub mode: Mode,
}

/// What a device is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Role {
    /// Packets leave translated here.
    #[default]
    Outside,
    /// Clients are routed in here.
    Inside,
    /// The host's side of a pod's veth.
    #[serde(other)]
    Client,
}

/// Where a program is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Hook {
    /// Before an skb exists.
    #[serde(rename = "xdp")]
    Xdp,
    /// What the device receives.
    #[serde(rename = "tcx ingress")]
    TcxIngress,
    /// What the device sends.
    #[serde(rename = "tcx egress")]
    TcxEgress,
    /// One that this version does not know.
    #[serde(rename = "other", other)]
    Other,
}

/// How a program is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Mode {
    /// XDP in the driver.
    Native,
    /// XDP in the kernel's slow fall-back.
    Generic,
    /// By a tcx link.
    Tcx,
    /// Not known: nobody but the agent knows it, and its report lacks it.
    #[serde(other)]
    Unknown,
}

impl Report {
    /// A report of an agent that starts now and has nothing to complain about.
    pub fn new(config: &Path, bpffs: &Path, sweep_interval: Duration) -> Self {
        let now = unix_now();
        Self {
            schema: SCHEMA,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: process::id(),
            started: now,
            config: config.display().to_string(),
            bpffs: bpffs.display().to_string(),
            health: Health {
                since: now,
                ..Health::default()
            },
            heartbeat: now,
            sweep_interval: seconds_up(sweep_interval),
            ..Self::default()
        }
    }

    /// Changes the interval, when the configuration does.
    pub fn set_sweep_interval(&mut self, interval: Duration) {
        self.sweep_interval = seconds_up(interval);
    }

    /// Writes the report, with this moment as its heartbeat.
    ///
    /// # Errors
    /// The kernel's.
    pub fn write(&mut self, map: &Map<u32, abi::Report>) -> io::Result<()> {
        self.heartbeat = unix_now();
        map.set(&0, &self.encode())
    }

    /// Reads the report; `None` if none has been written.
    ///
    /// # Errors
    /// The kernel's, or what was written is no report.
    pub fn read(map: &Map<u32, abi::Report>) -> Result<Option<Self>> {
        // The kernel does not copy 64 KiB at once: a report may be read while it
        // is being written. The next one is whole.
        for _ in 0..3 {
            match map
                .get(&0)
                .context("read REPORT")?
                .map(|raw| Self::decode(&raw))
            {
                Some(Ok(report)) => return Ok(report),
                None => return Ok(None),
                Some(Err(_)) => std::thread::sleep(Duration::from_millis(5)),
            }
        }
        map.get(&0)
            .context("read REPORT")?
            .map_or(Ok(None), |raw| Self::decode(&raw))
    }

    /// The report as the map holds it. One that is too long is shortened, never
    /// cut: it stays JSON.
    pub fn encode(&self) -> Box<abi::Report> {
        let text = self.text();
        let mut raw = Box::new(abi::Report {
            length: 0,
            bytes: [0; REPORT_BYTES],
        });
        if let Some(room) = raw.bytes.get_mut(..text.len()) {
            room.copy_from_slice(&text);
            raw.length = text.len() as u32;
        }
        raw
    }

    /// The report that the map holds; `None` if none has been written.
    ///
    /// # Errors
    /// What was written is no report.
    pub fn decode(raw: &abi::Report) -> Result<Option<Self>> {
        if raw.length == 0 {
            return Ok(None);
        }
        let length = raw.length as usize;
        ensure!(
            length <= REPORT_BYTES,
            "the agent's report claims {length} bytes"
        );
        serde_json::from_slice(&raw.bytes[..length])
            .map(Some)
            .context("read the agent's report")
    }

    fn text(&self) -> Vec<u8> {
        let text = self.json();
        if text.len() <= REPORT_BYTES {
            return text;
        }
        let mut short = Self {
            shortened: true,
            ..self.clone()
        };
        short.shorten_words();
        // The clients' devices go first: they are many and alike.
        short.devices.sort_by_key(|device| device.role);
        short.cluster_ranges.truncate(LISTED);
        if let Some(kubernetes) = &mut short.kubernetes {
            kubernetes.pods.truncate(LISTED);
            kubernetes
                .pods
                .iter_mut()
                .for_each(|pod| cut(&mut pod.message));
        }
        loop {
            let text = short.json();
            if text.len() <= REPORT_BYTES {
                return text;
            }
            if short.devices.pop().is_none() {
                return Self {
                    schema: SCHEMA,
                    heartbeat: self.heartbeat,
                    ..Self::default()
                }
                .json();
            }
            // A tenth at a time: thousands of devices are not encoded thousands of times.
            short
                .devices
                .truncate(short.devices.len() - short.devices.len() / 10);
        }
    }

    fn shorten_words(&mut self) {
        let more = self.health.problems.len().saturating_sub(PROBLEMS);
        self.health.problems.truncate(PROBLEMS);
        self.health.problems.iter_mut().for_each(cut);
        if more > 0 {
            self.health
                .problems
                .push(format!("and {more} more; see the agent's log"));
        }
        self.devices
            .iter_mut()
            .filter_map(|device| device.note.as_mut())
            .for_each(cut);
        cut(&mut self.config);
        cut(&mut self.bpffs);
    }

    fn json(&self) -> Vec<u8> {
        // Strings and numbers only: this cannot fail, and an empty report would be no lie.
        serde_json::to_vec(self).unwrap_or_default()
    }
}

fn cut(text: &mut String) {
    if let Some((end, _)) = text.char_indices().nth(SENTENCE) {
        text.truncate(end);
        text.push('…');
    }
}

fn seconds_up(interval: Duration) -> u64 {
    interval.as_secs() + u64::from(interval.subsec_nanos() > 0)
}

/// Seconds since 1970.
pub fn unix_now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(devices: usize) -> Report {
        let device = |number: usize| DeviceReport {
            name: format!("veth{number}"),
            ifindex: number as u32,
            role: if number + 1 == devices {
                Role::Outside
            } else {
                Role::Client
            },
            hooks: vec![HookReport {
                program: "client_stack".into(),
                hook: Hook::TcxIngress,
                mode: Mode::Tcx,
            }],
            note: None,
        };
        Report {
            devices: (0..devices).map(device).collect(),
            ..Report::new(
                Path::new("/etc/n.yaml"),
                Path::new("/sys/fs/bpf/x"),
                Duration::from_millis(1500),
            )
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let report = report(3);
        assert_eq!(
            Report::decode(&report.encode()).unwrap(),
            Some(report.clone())
        );
        assert_eq!(report.sweep_interval, 2);
    }

    #[test]
    fn names_are_interface() {
        let text = String::from_utf8(report(1).json()).unwrap();
        for part in [
            r#""hook":"tcx ingress""#,
            r#""mode":"tcx""#,
            r#""role":"outside""#,
            r#""state":"ok""#,
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
    }

    #[test]
    fn nothing_written_and_rubbish() {
        let mut raw = Box::new(abi::Report {
            length: 0,
            bytes: [0; REPORT_BYTES],
        });
        assert_eq!(Report::decode(&raw).unwrap(), None);
        raw.length = 5;
        assert!(Report::decode(&raw).is_err());
        raw.length = u32::MAX;
        assert!(Report::decode(&raw).is_err());
    }

    #[test]
    fn a_long_report_stays_json_and_keeps_the_outside_device() {
        let mut long = report(4000);
        long.health.state = HealthState::Degraded;
        long.health.problems = (0..1000)
            .map(|number| format!("{number} {}", "ö".repeat(1000)))
            .collect();
        let read = Report::decode(&long.encode()).unwrap().unwrap();
        assert!(read.shortened);
        assert_eq!(read.devices[0].name, "veth3999");
        assert!(read.devices.len() > 100, "{}", read.devices.len());
        assert_eq!(read.health.problems.len(), PROBLEMS + 1);
        assert_eq!(read.health.state, HealthState::Degraded);
    }

    #[test]
    fn words_of_a_later_version_are_no_error() {
        let later = br#"{"schema":9,"health":{"state":"onFire"},"new":1,"devices":[{"name":"e","role":"dmz",
            "hooks":[{"program":"p","hook":"netkit","mode":"offload"}]}]}"#;
        let mut raw = Box::new(abi::Report {
            length: later.len() as u32,
            bytes: [0; REPORT_BYTES],
        });
        raw.bytes[..later.len()].copy_from_slice(later);
        let read = Report::decode(&raw).unwrap().unwrap();
        assert_eq!(read.health.state, HealthState::Degraded);
        assert_eq!(read.devices[0].hooks[0].hook, Hook::Other);
    }
}
