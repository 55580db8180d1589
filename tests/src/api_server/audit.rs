//! What the agents asked the API server for, by its audit log.

use std::{fs, path::Path};

use anyhow::{Context, Result};
use serde_json::{Value, json};

/// The log's name in the server's directory.
pub const LOG: &str = "audit.log";

/// A request.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Request {
    /// `list`, `watch`, `patch` and so on.
    pub verb: String,
    /// `pods`, `egresspools/status` and so on.
    pub resource: String,
}

/// One line for each request of this user, when it is answered, or begins to be.
pub fn policy(user: &str) -> String {
    json!({
        "apiVersion": "audit.k8s.io/v1", "kind": "Policy",
        "omitStages": ["RequestReceived"],
        "rules": [
            {"level": "Metadata", "users": [user], "verbs": ["watch"], "omitStages": ["ResponseComplete"]},
            {"level": "Metadata", "users": [user]},
            {"level": "None"},
        ],
    })
    .to_string()
}

/// The requests in a log.
pub fn read(log: &Path) -> Result<Vec<Request>> {
    let text = fs::read_to_string(log).unwrap_or_default();
    let lines = text.lines().filter(|line| line.ends_with('}'));
    lines
        .map(|line| request(&serde_json::from_str(line)?))
        .collect()
}

fn request(event: &Value) -> Result<Request> {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let object = &event["objectRef"];
    let resource = text(&object["resource"]).or_else(|| text(&event["requestURI"]));
    let resource = resource.context("a request for nothing")?;
    Ok(Request {
        verb: text(&event["verb"]).context("a request without a verb")?,
        resource: match object["subresource"].as_str() {
            Some(subresource) => format!("{resource}/{subresource}"),
            None => resource,
        },
    })
}
