//! What deploy/ says: kustomize and Helm make the same objects of it, and a real API server takes them all.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail, ensure};
use nat_agent::config;
use nat_tests::{
    api_server::ADMIN,
    cluster,
    deploy::{self, EXAMPLE},
    process,
};
use serde_json::{Value, json};

use super::{Lab, PATIENCE};

const OVERLAYS: &str = "overlays";
const NODE_FILE: &str = "/data/node.yaml";
/// In the chart alone. It keeps the pools when the chart is uninstalled.
const KEEP: &str = "helm.sh/resource-policy";
/// In the chart alone. Kustomize has it in the ConfigMap's name.
const CHECKSUM: &str = "checksum/config";
/// Files of deploy/, words in them, and the same words misspelt.
const MISSPELT: [(&str, &str, &str); 6] = [
    ("base/daemonset.yaml", "readinessProbe", "readynessProbe"),
    ("example/app.yaml", "topologyKey", "topologyKay"),
    (
        "overlays/guard-only/kustomization.yaml",
        "initContainers",
        "initContaners",
    ),
    ("overlays/k3s/kustomization.yaml", "hostPath", "hostPaht"),
    (
        "overlays/own-ranges/kustomization.yaml",
        "behavior",
        "behaviour",
    ),
    ("overlays/own-ranges/node.yaml", "podRanges", "podRange"),
];

/// By kind and name.
type Objects = BTreeMap<String, Value>;

fn ask(program: &str, line: &str, input: &str) -> Result<String> {
    let mut command = Command::new(cluster::programs()?.join(program));
    process::run_with_input(command.args(line.split_whitespace()), input, PATIENCE)?
        .success()
        .with_context(|| format!("{program} {line}"))
}

/// A kustomization that installs the agent, and the chart's values for the same.
fn twins() -> Result<[(&'static str, String); 4]> {
    let node = fs::read_to_string(deploy::manifests("overlays/own-ranges/node.yaml"))?;
    let node: String = node.lines().map(|line| format!("  {line}\n")).collect();
    Ok([
        ("base", String::new()),
        ("overlays/guard-only", "cni: {enabled: false}".into()),
        (
            "overlays/k3s",
            "cni: {confDir: /var/lib/rancher/k3s/agent/etc/cni/net.d, binDir: /var/lib/rancher/k3s/data/cni}"
                .into(),
        ),
        ("overlays/own-ranges", format!("node:\n{node}")),
    ])
}

fn chart(values: &str) -> Result<String> {
    let chart = deploy::manifests("helm");
    let line = format!(
        "template natctl {} -n {} -f -",
        chart.display(),
        deploy::NAMESPACE
    );
    ask("helm", &line, values)
}

fn kustomize(directory: &Path) -> Result<String> {
    ask("kubectl", &format!("kustomize {}", directory.display()), "")
}

fn parse(text: &str) -> Result<Objects> {
    let mut objects = Objects::new();
    for object in serde_saphyr::from_multiple::<Value>(text)? {
        let (kind, metadata) = (&object["kind"], &object["metadata"]);
        let key = format!("{kind} {} {}", metadata["namespace"], metadata["name"]);
        let before = objects.insert(key.clone(), object);
        ensure!(before.is_none(), "{key} is there twice");
    }
    Ok(objects)
}

fn find<'a>(objects: &'a mut Objects, kind: &str) -> Result<&'a mut Value> {
    let found = objects
        .values_mut()
        .find(|object| object["kind"].as_str() == Some(kind));
    found.context(format!("no {kind}"))
}

/// What kustomize renders, in the chart's terms.
fn of_kustomize(text: &str) -> Result<Objects> {
    let mut hashed = parse(text)?;
    let name = &find(&mut hashed, "ConfigMap")?["metadata"]["name"];
    let name = name.as_str().context("no name")?;
    let mut objects = parse(&text.replace(name, "nat-agent-config"))?;
    // Helm's is whatever it is told to install into.
    objects.retain(|_, object| object["kind"] != "Namespace");
    let pod = &mut find(&mut objects, "DaemonSet")?["spec"]["template"]["spec"];
    // A patch that takes all away leaves an empty list.
    if pod["initContainers"] == json!([]) {
        pod.as_object_mut()
            .context("no pod")?
            .remove("initContainers");
    }
    in_one_order(objects)
}

/// What Helm renders, without what is in the chart alone.
fn of_helm(text: &str) -> Result<Objects> {
    let mut objects = parse(text)?;
    let definition = find(&mut objects, "CustomResourceDefinition")?;
    let keep = take_annotation(&mut definition["metadata"], KEEP)?;
    ensure!(keep == "keep", "{keep}");
    let agents = find(&mut objects, "DaemonSet")?;
    take_annotation(&mut agents["spec"]["template"]["metadata"], CHECKSUM)?;
    in_one_order(objects)
}

/// Takes the only annotation that there is.
fn take_annotation(metadata: &mut Value, name: &str) -> Result<Value> {
    let metadata = metadata.as_object_mut().context("no metadata")?;
    let annotations = metadata.remove("annotations").context("no annotations")?;
    let value = annotations[name].clone();
    ensure!(annotations == json!({name: value}), "{annotations}");
    Ok(value)
}

/// The volumes in the order of their names, and the node's file as what it means, without its comments.
fn in_one_order(mut objects: Objects) -> Result<Objects> {
    let volumes = find(&mut objects, "DaemonSet")?.pointer_mut("/spec/template/spec/volumes");
    let volumes = volumes
        .and_then(Value::as_array_mut)
        .context("no volumes")?;
    volumes.sort_by_key(|volume| volume["name"].to_string());
    let file = find(&mut objects, "ConfigMap")?.pointer_mut(NODE_FILE);
    let file = file.context("no node file")?;
    let text = file.as_str().context("no text")?;
    *file = serde_saphyr::from_str(text)?;
    Ok(objects)
}

#[test]
fn the_chart_is_what_the_kustomizations_are() -> Result<()> {
    for (directory, values) in twins()? {
        let wanted = of_kustomize(&kustomize(&deploy::manifests(directory))?)?;
        let rendered = of_helm(&chart(&values)?)?;
        let keys: BTreeSet<_> = wanted.keys().chain(rendered.keys()).collect();
        for key in keys {
            let (wanted, found) = (wanted.get(key), rendered.get(key));
            ensure!(
                wanted == found,
                "{directory}: {key}: {}, by Helm {}",
                json!(wanted),
                json!(found)
            );
        }
    }
    let mut overlays = BTreeSet::new();
    for entry in fs::read_dir(deploy::manifests(OVERLAYS))? {
        overlays.insert(format!("{OVERLAYS}/{}", entry?.file_name().display()));
    }
    let twins = twins()?.map(|(directory, _)| directory.to_owned());
    ensure!(overlays.iter().eq(&twins[1..]), "{overlays:?}");
    Ok(())
}

#[test]
fn the_chart_refuses_what_it_does_not_know() -> Result<()> {
    for (values, words) in [
        ("nodes: {}", "nodes"),
        ("cni: {confdir: /etc/cni}", "confdir"),
        ("node: {pools: []}", "pools"),
        ("healthPort: 0", "healthPort"),
    ] {
        let Err(error) = chart(values) else {
            bail!("{values} was accepted")
        };
        let told = format!("{error:#}");
        ensure!(told.contains(words), "{values}: {told}");
    }
    Ok(())
}

/// The figures in the node's file stay what they are, and labels do not take the agents' own away.
#[test]
fn values_get_where_they_belong() -> Result<()> {
    let text = chart(
        "{image: {repository: registry.example/nat, tag: '7', pullSecrets: [key]}, healthPort: 9000, \
         node: {limits: {sessions: 10485760}}, podLabels: {app.kubernetes.io/name: x, team: net}, \
         crds: {install: false}}",
    )?;
    let mut objects = parse(&text)?;
    ensure!(find(&mut objects, "CustomResourceDefinition").is_err());
    let file = find(&mut objects, "ConfigMap")?.pointer(NODE_FILE).cloned();
    let file = file.context("no node file")?.to_string();
    ensure!(file.contains("sessions: 10485760"), "{file}");
    let template = &find(&mut objects, "DaemonSet")?["spec"]["template"];
    let labels = json!({"app.kubernetes.io/name": "nat-agent", "team": "net"});
    ensure!(template["metadata"]["labels"] == labels);
    let spec = &template["spec"];
    ensure!(spec["imagePullSecrets"] == json!([{"name": "key"}]));
    for container in [&spec["containers"][0], &spec["initContainers"][0]] {
        ensure!(container["image"] == "registry.example/nat:7");
    }
    let agent = spec["containers"][0].to_string();
    ensure!(agent.contains("--health=127.0.0.1:9000") && !agent.contains("9819"));
    Ok(())
}

/// An API server that would be asked to take what deploy/ says.
struct Asked {
    lab: Lab,
    directory: PathBuf,
}

impl Asked {
    async fn start() -> Result<Self> {
        let lab = Lab::start().await?;
        // What is only asked about makes no namespace for the rest.
        let namespace =
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": EXAMPLE}});
        lab.apply(namespace).await?;
        let name = format!("natctl-rendered-{}", std::process::id());
        let directory = std::env::temp_dir().join(name);
        fs::create_dir_all(&directory)?;
        Ok(Self { lab, directory })
    }

    fn kubectl(&self, line: &str, input: &str) -> Result<String> {
        let line = format!(
            "--kubeconfig={} --cache-dir={} {line}",
            self.lab.server.kubeconfig(ADMIN)?.display(),
            self.directory.join("cache").display()
        );
        ask("kubectl", &line, input)
    }

    /// Only asks.
    fn apply(&self, what: &str, input: &str) -> Result<()> {
        self.kubectl(&format!("apply --dry-run=server {what}"), input)
            .map(drop)
    }

    fn helm(&self, line: &str) -> Result<()> {
        let kubeconfig = self.lab.server.kubeconfig(ADMIN)?;
        let line = format!(
            "{line} -n {} --kubeconfig={}",
            deploy::NAMESPACE,
            kubeconfig.display()
        );
        ask("helm", &line, "").map(drop)
    }

    /// Helm refuses, with these words.
    fn helm_refuses(&self, line: &str, words: &str) -> Result<()> {
        let Err(error) = self.helm(line) else {
            bail!("helm {line} was carried out")
        };
        let told = format!("{error:#}");
        ensure!(told.contains(words), "helm {line}: {told}");
        Ok(())
    }

    /// Whether the custom resource has this word in it.
    fn defined(&self, word: &str) -> Result<bool> {
        let definition = self.kubectl("get crd egresspools.natctl.io -o yaml", "")?;
        Ok(definition.contains(word))
    }

    /// Whether a kustomization can be applied, and its agents would start with the node's file.
    fn takes(&self, kustomization: &Path) -> Result<()> {
        let mut objects = parse(&kustomize(kustomization)?)?;
        if let Ok(file) = find(&mut objects, "ConfigMap") {
            let text = file.pointer(NODE_FILE).and_then(Value::as_str);
            let parsed = config::parse_node("node.yaml", text.context("no node file")?);
            ensure!(parsed.is_ok(), "{parsed:?}");
        }
        self.apply(&format!("-k {}", kustomization.display()), "")
    }

    /// A copy of deploy/ that may be changed.
    fn copy(&self) -> Result<PathBuf> {
        let mut command = Command::new("cp");
        command
            .arg("-r")
            .args([&deploy::manifests(""), &self.directory]);
        process::run(&mut command, PATIENCE)?.success()?;
        Ok(self.directory.join("deploy"))
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.directory);
    }
}

#[tokio::test]
async fn the_api_server_takes_what_is_in_deploy() -> Result<()> {
    let asked = Asked::start().await?;
    for (directory, values) in twins()? {
        asked.takes(&deploy::manifests(directory))?;
        asked.apply("-f -", &chart(&values)?)?;
    }
    asked.takes(&deploy::manifests("example"))?;
    let copy = asked.copy()?;
    for (name, right, wrong) in MISSPELT {
        let file = copy.join(name);
        let text = fs::read_to_string(&file)?;
        fs::write(&file, text.replace(right, wrong))?;
        let Err(error) = asked.takes(&file.with_file_name("")) else {
            bail!("{name}: {wrong} was accepted")
        };
        let told = format!("{error:#}");
        ensure!(told.contains(wrong), "{name}: {told}");
        fs::write(&file, text)?;
    }
    Ok(())
}

/// Helm takes over what kubectl applied, upgrades the custom resource with the rest, and leaves it when it goes.
#[tokio::test]
async fn helm_looks_after_the_custom_resource() -> Result<()> {
    let asked = Asked::start().await?;
    let (chart, older) = (deploy::manifests("helm"), asked.copy()?.join("helm"));
    let (chart, definition) = (chart.display(), older.join("crds.yaml"));
    let text = fs::read_to_string(&definition)?;
    fs::write(&definition, text.replace("name: Nodes", "name: Knots"))?;
    let base = deploy::manifests("base");
    asked.kubectl(&format!("apply -k {}", base.display()), "")?;
    let install = format!("install natctl {}", older.display());
    asked.helm_refuses(&install, "cannot be imported")?;
    asked.helm(&format!("{install} --take-ownership"))?;
    ensure!(asked.defined("name: Knots")?);
    let upgrade = format!("upgrade natctl {chart}");
    asked.helm(&upgrade)?;
    ensure!(asked.defined("name: Nodes")? && !asked.defined("name: Knots")?);
    for other in ["cni.enabled=false", "cni.binDir=/opt/other"] {
        let line = format!("{upgrade} --set {other}");
        asked.helm_refuses(&line, "/etc/cni/net.d and /opt/cni/bin")?;
    }
    asked.helm(&format!("{upgrade} --set crds.install=false"))?;
    ensure!(asked.defined("name: Nodes")?);
    asked.helm(&upgrade)?;
    asked.helm("uninstall natctl")?;
    ensure!(asked.defined("name: Nodes")?);
    let left = asked.kubectl("get daemonsets,serviceaccounts,roles -A -o name", "")?;
    ensure!(!left.contains("nat-agent"), "{left}");
    Ok(())
}
