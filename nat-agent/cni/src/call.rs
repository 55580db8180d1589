//! What the runtime asks for: the environment and the network configuration on standard input.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use serde::Deserialize;
use serde_json::Value;

use crate::error::{Code, Error};

/// The versions of the specification that are supported; 0.3.0 is the first with lists of plugins.
pub const VERSIONS: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];
/// Where the agent listens, unless the configuration says otherwise.
pub const SOCKET: &str = "/run/natctl/agent.sock";
/// How long the agent may take, unless the configuration says otherwise: seconds.
const TIMEOUT: u64 = 10;
/// The kubelet gives a pod's network up after four minutes.
const LONGEST: u64 = 120;

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// A pod's interface was made.
    Add,
    /// A pod's interface goes.
    Del,
    /// Is a pod's interface as it should be?
    Check,
    /// Can pods be added now?
    Status,
    /// What is not listed is left over, and can be removed.
    Gc,
    /// Which versions are supported?
    Version,
}

/// The plugin's part of a network configuration, with what the runtime adds. Other fields are the
/// runtime's or other plugins', and left alone.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Configuration {
    /// The version of the specification.
    #[serde(default)]
    pub cni_version: String,
    /// Where the agent listens.
    #[serde(default = "socket")]
    pub socket: PathBuf,
    /// How long the agent may take, seconds.
    #[serde(default = "timeout")]
    timeout: u64,
    /// What the plugins before this one have made.
    pub prev_result: Option<Value>,
}

fn socket() -> PathBuf {
    SOCKET.into()
}

const fn timeout() -> u64 {
    TIMEOUT
}

impl Configuration {
    /// Reads it.
    ///
    /// # Errors
    /// It cannot be decoded.
    pub fn read(text: &str) -> Result<Self, Error> {
        serde_json::from_str(text).map_err(|error| {
            let message = format!("the network configuration cannot be read: {error}");
            Error::new(Code::Undecodable, message)
        })
    }

    /// How long the agent may take.
    pub const fn patience(&self) -> Duration {
        Duration::from_secs(self.timeout)
    }

    /// Refuses what cannot be meant.
    ///
    /// # Errors
    /// The version is not supported, or a field's value cannot be meant.
    pub fn check(&self) -> Result<(), Error> {
        if !VERSIONS.contains(&self.cni_version.as_str()) {
            let message = format!("cniVersion {:?} is not supported", self.cni_version);
            let details = format!("use one of {}", VERSIONS.join(", "));
            return Err(Error::new(Code::Version, message).with(details));
        }
        if !(1..=LONGEST).contains(&self.timeout) {
            let message = format!("timeout is {}, and must be 1 to {LONGEST}", self.timeout);
            return Err(Error::new(Code::Configuration, message).with("it is in seconds"));
        }
        Ok(())
    }
}

/// The environment of a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Environment {
    /// What is asked for.
    pub command: Command,
    /// The pod's sandbox; empty where no pod is meant.
    pub container: String,
    /// `CNI_ARGS`: what the runtime says of the pod.
    pub arguments: BTreeMap<String, String>,
}

impl Environment {
    /// Reads it. `get` returns a variable's value.
    ///
    /// # Errors
    /// A variable is missing or wrong.
    pub fn read(get: impl Fn(&str) -> Option<String>) -> Result<Self, Error> {
        let value = |name: &str| get(name).filter(|value| !value.is_empty());
        let command = match value("CNI_COMMAND").as_deref() {
            Some("ADD") => Command::Add,
            Some("DEL") => Command::Del,
            Some("CHECK") => Command::Check,
            Some("STATUS") => Command::Status,
            Some("GC") => Command::Gc,
            Some("VERSION") => Command::Version,
            Some(other) => return Err(wrong(format!("CNI_COMMAND {other:?} is not known"))),
            None => {
                let message = "CNI_COMMAND is not set: nat-cni is run by a container runtime";
                return Err(wrong(message.to_owned()));
            }
        };
        let needed: &[&str] = match command {
            Command::Add | Command::Check => &["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"],
            Command::Del => &["CNI_CONTAINERID", "CNI_IFNAME"],
            Command::Status | Command::Gc | Command::Version => &[],
        };
        if let Some(missing) = needed.iter().find(|name| value(name).is_none()) {
            return Err(wrong(format!("{missing} is not set")));
        }
        Ok(Self {
            command,
            container: value("CNI_CONTAINERID").unwrap_or_default(),
            arguments: arguments(&value("CNI_ARGS").unwrap_or_default())?,
        })
    }
}

fn wrong(message: String) -> Error {
    Error::new(Code::Environment, message)
}

/// `KEY=VALUE;KEY=VALUE`.
fn arguments(text: &str) -> Result<BTreeMap<String, String>, Error> {
    let pairs = text.split(';').filter(|pair| !pair.is_empty());
    let pairs = pairs.map(|pair| {
        let (key, value) = pair
            .split_once('=')
            .ok_or_else(|| wrong(format!("CNI_ARGS holds {pair:?}, which is no KEY=VALUE")))?;
        Ok((key.to_owned(), value.to_owned()))
    });
    pairs.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<Environment, Error> {
        Environment::read(|name| {
            let found = variables.iter().find(|(key, _)| *key == name);
            found.map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn a_runtimes_call() {
        let environment = read(&[
            ("CNI_COMMAND", "ADD"),
            ("CNI_CONTAINERID", "c1"),
            ("CNI_NETNS", "/run/netns/x"),
            ("CNI_IFNAME", "eth0"),
            (
                "CNI_ARGS",
                "IgnoreUnknown=1;K8S_POD_NAME=web-0;K8S_POD_UID=u=1",
            ),
        ])
        .unwrap();
        assert_eq!(environment.command, Command::Add);
        assert_eq!(environment.container, "c1");
        assert_eq!(environment.arguments["K8S_POD_NAME"], "web-0");
        assert_eq!(environment.arguments["K8S_POD_UID"], "u=1");
    }

    #[test]
    fn what_is_missing_is_named() {
        let message = |variables: &[(&str, &str)]| {
            let error = read(variables).unwrap_err();
            assert_eq!(error.code, Code::Environment);
            error.message
        };
        assert!(message(&[]).contains("CNI_COMMAND is not set"));
        assert!(message(&[("CNI_COMMAND", "SING")]).contains("SING"));
        let add = [
            ("CNI_COMMAND", "ADD"),
            ("CNI_CONTAINERID", "c1"),
            ("CNI_IFNAME", "eth0"),
        ];
        assert!(message(&add).contains("CNI_NETNS is not set"));
        assert!(message(&[("CNI_COMMAND", "DEL")]).contains("CNI_CONTAINERID"));
        let odd = [("CNI_COMMAND", "VERSION"), ("CNI_ARGS", "K8S_POD_NAME")];
        assert!(message(&odd).contains("no KEY=VALUE"));
    }

    #[test]
    fn a_configuration_has_defaults_and_bounds() {
        let read = |text: &str| Configuration::read(text).unwrap();
        let usual =
            read(r#"{"cniVersion": "1.0.0", "type": "nat-cni", "name": "pods", "other": 1}"#);
        assert_eq!(usual.check(), Ok(()));
        assert_eq!(usual.socket, PathBuf::from(SOCKET));
        assert_eq!(usual.patience(), Duration::from_secs(10));
        let code = |text: &str| read(text).check().unwrap_err().code;
        assert_eq!(code("{}"), Code::Version);
        assert_eq!(code(r#"{"cniVersion": "0.2.0"}"#), Code::Version);
        assert_eq!(
            code(r#"{"cniVersion": "1.1.0", "timeout": 0}"#),
            Code::Configuration
        );
        let error = Configuration::read("{").unwrap_err();
        assert_eq!(error.code, Code::Undecodable);
    }
}
