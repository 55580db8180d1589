//! What plugin and agent tell each other over the agent's socket: one line of JSON each way.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// Of the protocol. An agent refuses others: the plugin comes with the agent.
pub const VERSION: u32 = 1;
/// The longest line that is read, bytes.
pub const LONGEST: u64 = 64 * 1024;

/// A line from the plugin.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// [`VERSION`].
    pub version: u32,
    /// How long the plugin waits for the answer, milliseconds.
    pub patience: u64,
    /// What it wants to know.
    pub question: Question,
}

/// What the plugin wants to know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Question {
    /// This is a pod's interface now: say when it is programmed.
    Add(Attachment),
    /// Is this pod programmed?
    Check(Attachment),
    /// This sandbox's interface goes.
    Del(String),
    /// Are you there?
    Status,
}

/// A pod's interface.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's name.
    pub name: String,
    /// The pod's uid; older runtimes do not tell.
    pub uid: Option<String>,
    /// Its sandbox.
    pub container: String,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Links on the node's side that were made or used for it.
    pub links: Vec<Link>,
}

impl Attachment {
    /// `namespace/name`.
    pub fn path(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }
}

/// A link of the node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    /// Its name.
    pub name: String,
    /// Its number.
    pub ifindex: u32,
}

/// A line from the agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Answer {
    /// It is done, or there is nothing to do. With what a person may want to know.
    Done(Option<String>),
    /// It is not done, and why not.
    NotDone(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sent() {
        let request = Request {
            version: VERSION,
            patience: 500,
            question: Question::Del("c1".to_owned()),
        };
        let text = r#"{"version":1,"patience":500,"question":{"del":"c1"}}"#;
        assert_eq!(serde_json::to_string(&request).unwrap(), text);
        let answer = Answer::NotDone("why".to_owned());
        let text = r#"{"notDone":"why"}"#;
        assert_eq!(serde_json::to_string(&answer).unwrap(), text);
        assert_eq!(serde_json::from_str::<Answer>(text).unwrap(), answer);
    }
}
