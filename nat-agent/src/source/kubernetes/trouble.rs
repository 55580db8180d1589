//! Why a pod's annotation is not served as it stands: the words of Events and of the status.
//!
//! docs/kubernetes.md goes through them; a test compares.

use std::net::Ipv4Addr;

use super::link::Missing;

/// Why a pod's annotation is not served as it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// It says something that cannot be meant.
    Annotation(String),
    /// What it says about its flows cannot be meant.
    Cutover(String),
    /// There is no pool of this name.
    NoSuchPool(String),
    /// The address is in no pool.
    NoPoolHasAddress(Ipv4Addr),
    /// The pool cannot be used; why.
    PoolRefused(String, String),
    /// The pool does not select the pod's namespace.
    NotAllowed {
        /// The pool.
        pool: String,
        /// The namespace.
        namespace: String,
    },
    /// The pool does not select the pod's node.
    NotOnThisNode {
        /// The pool.
        pool: String,
        /// The node.
        node: String,
    },
    /// Another node uses the address, or every address of the pool.
    Held {
        /// What was asked for: an address, or a pool's name.
        what: String,
        /// The node.
        node: String,
    },
    /// It has no IPv4 address.
    Ipv6Only,
    /// It has an IPv6 address as well.
    Ipv6Too,
    /// A newer pod has its address.
    AddressReused(String),
    /// The address is being claimed for this node.
    Claiming(String),
    /// Its link is not known yet.
    Link(Missing),
}

/// How much a trouble matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Weight {
    /// It passes by itself in a moment: the status says it, no Event.
    Passing,
    /// Worth knowing.
    Note,
    /// Somebody has to do something.
    Warning,
}

impl Trouble {
    /// The Event's reason.
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Annotation(_) | Self::Cutover(_) => "InvalidAnnotation",
            Self::NoSuchPool(_) => "NoSuchPool",
            Self::NoPoolHasAddress(_) => "AddressInNoPool",
            Self::PoolRefused(..) => "PoolRefused",
            Self::NotAllowed { .. } => "NamespaceNotAllowed",
            Self::NotOnThisNode { .. } => "NodeNotSelected",
            Self::Held { .. } => "AddressInUse",
            Self::Ipv6Only => "IPv6Only",
            Self::Ipv6Too => "IPv6NotTranslated",
            Self::AddressReused(_) => "AddressReused",
            Self::Claiming(_) => "Claiming",
            Self::Link(_) => "WaitingForLink",
        }
    }

    /// How much it matters.
    pub const fn weight(&self) -> Weight {
        match self {
            Self::Claiming(_) | Self::Link(_) | Self::AddressReused(_) => Weight::Passing,
            Self::Ipv6Too => Weight::Note,
            _ => Weight::Warning,
        }
    }

    /// What is wrong, and after a semicolon what to do.
    pub fn words(&self) -> String {
        match self {
            Self::Annotation(problem) => format!("natctl.io/egress-ip {problem}"),
            Self::Cutover(problem) => problem.clone(),
            Self::NoSuchPool(pool) => format!(
                "there is no EgressPool {pool}; name one that `kubectl get egresspools` lists, or \
                 make it"
            ),
            Self::NoPoolHasAddress(address) => format!(
                "{address} is an address of no EgressPool; use one that is, or have it added to a \
                 pool"
            ),
            Self::PoolRefused(pool, why) => {
                format!("EgressPool {pool} cannot be used until it is corrected; {why}")
            }
            Self::NotAllowed { pool, namespace } => format!(
                "EgressPool {pool} does not allow namespace {namespace}; label the namespace so \
                 that the pool's allowedNamespaces selects it, or use another pool"
            ),
            Self::NotOnThisNode { pool, node } => format!(
                "EgressPool {pool} is not for node {node}; keep the pod on nodes that the pool's \
                 nodeSelector selects, or use another pool"
            ),
            Self::Held { what, node } => format!(
                "{what} is in use on node {node}, and one node uses an address at a time; wait \
                 until its pods there are gone, move this pod there, or use another address"
            ),
            Self::Ipv6Only => "the pod has no IPv4 address, and IPv6 is not translated yet; give \
                               it an IPv4 address, or remove the annotation"
                .to_owned(),
            Self::Ipv6Too => {
                "only the pod's IPv4 packets get the egress address: its IPv6 packets \
                              leave as they are; block them by a policy if they must not"
                    .to_owned()
            }
            Self::AddressReused(other) => {
                format!("its address is that of the newer pod {other}; it is no client any more")
            }
            Self::Claiming(what) => format!("{what} is being claimed for this node; wait"),
            Self::Link(missing) => {
                format!("its link is not known: {missing}; its packets are dropped until then")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> Vec<Trouble> {
        let text = || "x".to_owned();
        let link = Missing::Route;
        vec![
            Trouble::Annotation(text()),
            Trouble::Cutover("x; y".to_owned()),
            Trouble::NoSuchPool(text()),
            Trouble::NoPoolHasAddress(Ipv4Addr::LOCALHOST),
            Trouble::PoolRefused(text(), text()),
            Trouble::NotAllowed {
                pool: text(),
                namespace: text(),
            },
            Trouble::NotOnThisNode {
                pool: text(),
                node: text(),
            },
            Trouble::Held {
                what: text(),
                node: text(),
            },
            Trouble::Ipv6Only,
            Trouble::Ipv6Too,
            Trouble::AddressReused(text()),
            Trouble::Claiming(text()),
            Trouble::Link(link),
        ]
    }

    #[test]
    fn every_reason_is_in_the_manual() {
        let manual = include_str!("../../../../docs/kubernetes.md");
        for trouble in all() {
            let reason = trouble.reason();
            assert!(
                manual.contains(&format!("| `{reason}` |")),
                "docs/kubernetes.md lacks {reason}"
            );
        }
        for reason in [
            "EgressReady",
            "Invalid",
            "InsideCluster",
            "Overlaps",
            "Accepted",
        ] {
            assert!(
                manual.contains(&format!("`{reason}`")),
                "docs/kubernetes.md lacks {reason}"
            );
        }
    }

    #[test]
    fn words_say_what_to_do_and_fit_an_event() {
        for trouble in all() {
            let words = trouble.words();
            // The longest note that the API server takes has 1024 bytes.
            assert!(words.len() < 600, "{words}");
            if trouble.weight() != Weight::Passing && !matches!(trouble, Trouble::Annotation(_)) {
                assert!(words.contains("; "), "{words}");
            }
        }
    }
}
