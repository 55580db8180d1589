//! What is going on, for `natctl`: read from the pinned maps, so that it works
//! while the agent is down, and says that it is.
//!
//! | File | What it does |
//! |---|---|
//! | [`command`] | the command line: arguments, exit codes |
//! | [`model`] | what `natctl status` says, as JSON has it |
//! | [`read`] | fills it from the maps, one pass over each |
//! | [`tally`] | sums per client on the way |
//! | [`directory`] | who the numbers in the maps are |
//! | [`devices`] | joins the agent's report with the programs' own table |
//! | [`health`] | judges whether all is well |
//! | [`text`] | the same for a person |
//! | [`flows`] | `natctl flows`: the sessions |
//! | [`pinned`] | opens the maps, or says in plain words why it cannot |
//! | [`plugin`] | `kubectl nat`: natctl on a pod's node |
//! | [`table`], [`units`] | columns; durations, bytes and times |

pub mod command;
pub mod devices;
pub mod directory;
pub mod flows;
pub mod health;
pub mod model;
pub mod pinned;
pub mod plugin;
pub mod read;
pub mod table;
pub mod tally;
pub mod text;
pub mod units;

#[cfg(test)]
mod example;
