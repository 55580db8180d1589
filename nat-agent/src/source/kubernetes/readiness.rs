//! Whether a pod may start: all that its packets need is in force. Pure.

use nat_cni::protocol::Attachment;

use super::{
    link,
    object::Pod,
    resolve::Resolved,
    trouble::{Trouble, Weight},
    world::World,
};
use crate::{diff::State, source::View};

/// What it is judged by.
#[derive(Clone, Copy, Debug)]
pub struct Scene<'a> {
    /// The cluster.
    pub world: &'a World,
    /// What pods are given.
    pub resolved: &'a Resolved,
    /// The node and its tables.
    pub view: View<'a>,
    /// Why the tables and programs are not as they should be.
    pub problem: Option<&'a str>,
    /// What is wrong with the connection to the API server.
    pub silence: Option<&'a str>,
}

/// Whether the pod may start, and what a person may want to know of it.
///
/// # Errors
/// What it waits for.
pub fn readiness(attachment: &Attachment, scene: &Scene<'_>) -> Result<Option<String>, String> {
    if let Some(problem) = scene.problem {
        return Err(problem.to_owned());
    }
    let path = attachment.path();
    let unseen = |what: &str, name: &str| {
        let silence = scene.silence.map(|silence| format!("; {silence}"));
        format!(
            "the API server has not told nat-agent of {what} {name} yet{}",
            silence.unwrap_or_default()
        )
    };
    let pod = scene.world.pods.get(&path);
    let pod = pod.filter(|pod| pod.is_known_as(attachment.uid.as_deref()));
    let pod = pod.ok_or_else(|| unseen("pod", &path))?;
    if !scene.world.namespaces.contains_key(&pod.namespace) {
        return Err(unseen("namespace", &pod.namespace));
    }
    let links: Vec<u32> = attachment.links.iter().map(|link| link.ifindex).collect();
    link::announced(&links, scene.view.facts).map_err(|missing| missing.to_string())?;
    let trouble = scene.resolved.troubles.get(&path);
    if let Some(passing) = trouble.filter(|trouble| trouble.weight() == Weight::Passing) {
        return Err(passing.words());
    }
    let mut clients = scene.resolved.clients.iter();
    if clients.any(|client| client.name == path) {
        in_the_tables(attachment, pod, scene.view.state)?;
    }
    Ok(trouble.map(Trouble::words))
}

/// The tables may have no room for it.
fn in_the_tables(attachment: &Attachment, pod: &Pod, state: &State) -> Result<(), String> {
    let client = state.clients.get(&pod.path());
    let there = client.is_some_and(|client| {
        let mut sources = client.entry.addresses.iter();
        let source = sources.any(|source| attachment.addresses.contains(&source.addr().into()));
        source && client.entry.ifindex != 0
    });
    there.then_some(()).ok_or_else(|| {
        "nat-agent cannot put it into its tables; `natctl status` says why".to_owned()
    })
}
