//! `natctl flows`: the sessions.
//!
//! | File | What it does |
//! |---|---|
//! | [`filter`] | which sessions are wanted |
//! | [`read`] | finds them: one pass over the forward halves, a look-up for each reverse half |
//! | [`flow`] | what a session is, from its two halves |
//! | [`text`] | the list for a person |

pub mod filter;
pub mod flow;
pub mod read;
pub mod text;

use serde::Serialize;

use self::flow::Flow;

/// What `natctl flows` says; its JSON.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Flows<'a> {
    /// [`super::model::SCHEMA`].
    pub schema: u32,
    /// Version of natctl.
    pub version: &'static str,
    /// Where the maps are pinned.
    pub bpffs: String,
    /// When this was read, Unix seconds.
    pub time: u64,
    /// Whether the agent runs: while it does not, sessions do not end.
    pub agent_running: bool,
    /// When the agent last reported, Unix seconds.
    pub agent_heartbeat: Option<u64>,
    /// Sessions that the filters let through, shown or not.
    pub matched: u64,
    /// The sessions, by protocol, inside and remote endpoint.
    pub flows: Vec<Flow<'a>>,
}
