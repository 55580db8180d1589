//! Which tests there are, in the order in which they run: what fails soonest first.

use std::{fs, time::Duration};

use crate::run;

/// Tests that run together.
#[derive(Clone, Debug)]
pub struct Suite {
    pub name: String,
    pub about: &'static str,
    /// What `cargo test` is told to run.
    pub cargo: Vec<String>,
    /// For the test binaries.
    pub harness: &'static [&'static str],
    /// Whether it loads programs or makes namespaces, which needs root.
    pub kernel: bool,
    /// Whether it takes Kubernetes' programs.
    pub kubernetes: bool,
    /// When to give it up.
    pub limit: Duration,
}

/// Tests on the host: name, what they are, what `cargo test` is told.
///
/// The core is also tested in the debug profile, which checks for overflow. All
/// else shares the release build with the programs under test, and names no package:
/// that would change dependencies' features, and have them built again.
const HOST: &[(&str, &str, &[&str])] = &[
    (
        "core",
        "packet core: fixtures and properties, overflow checked",
        &["-p", "nat-common"],
    ),
    (
        "unit",
        "unit tests of every crate",
        &[
            "--workspace",
            "--exclude",
            "nat-ebpf",
            "--release",
            "--lib",
            "--bins",
        ],
    ),
    (
        "plan",
        "from configurations to operations, for many random ones",
        &["--release", "--test", "plan"],
    ),
];

/// The suites that take Kubernetes: they run last. Left out under the first one's
/// name, all are.
pub const KUBERNETES: &[(&str, &str)] = &[
    ("cluster", "a real Kubernetes cluster of several nodes"),
    (
        "kubernetes_api",
        "the agent's Kubernetes source and a real API server",
    ),
    (
        "kubernetes_scale",
        "the benchmark of the agent in a large cluster, with a small one",
    ),
    ("kubernetes", "the agent on a real cluster, from deploy/"),
    (
        "outage",
        "the agent without its API server, and without power",
    ),
    (
        "pod_starts",
        "pods that send from their first instant, with the CNI plugin and without",
    ),
];

/// Files of tests/tests, first to last, with what they are and their limit in
/// minutes. A file that is not named here runs after these.
const KERNEL: &[(&str, &str, u64)] = &[
    ("bench_frames", "the benchmarks' own frames are valid", 2),
    (
        "labs",
        "the labs carry traffic and their sniffer sees leaks",
        5,
    ),
    (
        "image",
        "the Dockerfile makes the image that we make without an engine",
        5,
    ),
    ("budget", "instructions and memory keep to the budget", 5),
];

/// The limit of what is not named above.
const LIMIT: Duration = Duration::from_secs(10 * 60);

/// One after another: labs use the same names and addresses, and some measure time.
const SERIAL: &[&str] = &["--test-threads=1"];

/// Every suite, in order.
pub fn all() -> Vec<Suite> {
    let host = HOST.iter().map(|&(name, about, cargo)| Suite {
        name: name.into(),
        about,
        cargo: cargo.iter().map(|&word| word.into()).collect(),
        harness: &[],
        kernel: false,
        kubernetes: false,
        limit: LIMIT,
    });
    let named = KERNEL
        .iter()
        .map(|&(name, about, minutes)| kernel(name, about, Duration::from_secs(minutes * 60)));
    let others = test_files().into_iter().filter(|file| !is_named(file));
    let others = others.map(|file| kernel(&file, "programs and namespaces", LIMIT));
    let kubernetes = KUBERNETES.iter().map(|&(name, about)| Suite {
        kubernetes: true,
        ..kernel(name, about, LIMIT)
    });
    host.chain(named).chain(others).chain(kubernetes).collect()
}

fn kernel(name: &str, about: &'static str, limit: Duration) -> Suite {
    Suite {
        name: name.into(),
        about,
        cargo: ["--release", "--test", name].map(String::from).into(),
        harness: SERIAL,
        kernel: true,
        kubernetes: false,
        limit,
    }
}

fn is_named(file: &str) -> bool {
    let mut named = KERNEL.iter().map(|&(name, ..)| name);
    named.any(|name| name == file) || KUBERNETES.iter().any(|&(name, _)| name == file)
}

/// The test targets in tests/tests, by name.
fn test_files() -> Vec<String> {
    let Ok(entries) = fs::read_dir(run::workspace().join("tests/tests")) else {
        return Vec::new();
    };
    let mut names: Vec<_> = entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter_map(|name| name.strip_suffix(".rs").map(String::from))
        .collect();
    names.sort();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_named_file_exists() {
        let files = test_files();
        let named = KERNEL.iter().map(|&(name, ..)| name);
        for name in named.chain(KUBERNETES.iter().map(|&(name, _)| name)) {
            assert!(
                files.iter().any(|file| file == name),
                "tests/tests/{name}.rs"
            );
        }
    }

    #[test]
    fn every_file_has_one_suite_of_a_unique_name() {
        let mut names: Vec<_> = all().into_iter().map(|suite| suite.name).collect();
        let count = names.len();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), count);
        assert_eq!(count, HOST.len() + test_files().len());
    }
}
