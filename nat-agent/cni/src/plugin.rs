//! What is done about a call.

use std::{collections::BTreeMap, fs, io, net::IpAddr, path::Path, time::Duration};

use serde::Deserialize;
use serde_json::{Value, json};

use crate::{
    call::{Command, Configuration, Environment, VERSIONS},
    error::{Code, Error, Failure},
    protocol::{Answer, Attachment, Link, Question},
    socket,
};

/// How long a pod that goes waits for the agent, which also learns of it from the API.
const FAREWELL: Duration = Duration::from_secs(1);

/// A call that succeeded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Done {
    /// For the runtime, on standard output.
    pub output: String,
    /// For people, on standard error.
    pub note: Option<String>,
}

/// Answers a call. `get` returns a variable of the environment, `input` is the standard input, `links`
/// the directory with the node's links (/sys/class/net).
///
/// # Errors
/// What is to be printed instead.
pub fn run(
    get: impl Fn(&str) -> Option<String>,
    input: &str,
    links: &Path,
) -> Result<Done, Failure> {
    let configuration = Configuration::read(input);
    let version = match &configuration {
        Ok(configuration) if !configuration.cni_version.is_empty() => &configuration.cni_version,
        _ => VERSIONS[VERSIONS.len() - 1],
    };
    let version = version.to_owned();
    let done = Environment::read(get).and_then(|environment| match environment.command {
        // Asked before the version is settled.
        Command::Version => Ok(versions(&version)),
        _ => act(&environment, &configuration?, links),
    });
    done.map_err(|error| Failure { version, error })
}

fn act(
    environment: &Environment,
    configuration: &Configuration,
    links: &Path,
) -> Result<Done, Error> {
    if environment.command == Command::Del {
        // A pod must be able to go, whatever is wrong here.
        let question = Question::Del(environment.container.clone());
        let _ = socket::ask_once(&configuration.socket, &question, FAREWELL);
        return Ok(Done::default());
    }
    configuration.check()?;
    match environment.command {
        Command::Add => add(environment, configuration, links),
        Command::Check => check(environment, configuration, links),
        Command::Status => status(configuration),
        Command::Gc | Command::Del | Command::Version => Ok(Done::default()),
    }
}

fn versions(version: &str) -> Done {
    let printed = json!({"cniVersion": version, "supportedVersions": VERSIONS});
    Done {
        output: printed.to_string(),
        note: None,
    }
}

fn add(
    environment: &Environment,
    configuration: &Configuration,
    links: &Path,
) -> Result<Done, Error> {
    let result = configuration.prev_result.as_ref().ok_or_else(|| {
        Error::new(Code::Configuration, "there is no prevResult")
            .with("nat-cni comes after the plugin that makes the pod's interface")
    })?;
    let note = match attachment(environment, result, links)? {
        Some(attachment) => ask(configuration, &Question::Add(attachment), Code::Later)?,
        None => None,
    };
    Ok(Done {
        output: passed_on(result, &configuration.cni_version),
        note,
    })
}

fn check(
    environment: &Environment,
    configuration: &Configuration,
    links: &Path,
) -> Result<Done, Error> {
    let result = configuration.prev_result.clone().unwrap_or_default();
    let note = match attachment(environment, &result, links)? {
        Some(attachment) => {
            let question = Question::Check(attachment);
            ask(configuration, &question, Code::NotProgrammed)?
        }
        None => None,
    };
    Ok(Done {
        output: String::new(),
        note,
    })
}

fn status(configuration: &Configuration) -> Result<Done, Error> {
    let answer = socket::ask(
        &configuration.socket,
        &Question::Status,
        configuration.patience(),
    );
    match answer {
        Ok(Answer::Done(_)) => Ok(Done::default()),
        Ok(Answer::NotDone(why)) => Err(Error::new(Code::Unavailable, why)),
        Err(error) => Err(silent(configuration, &error, Code::Unavailable)),
    }
}

/// Asks the agent; `code` is for an answer that is no.
fn ask(
    configuration: &Configuration,
    question: &Question,
    code: Code,
) -> Result<Option<String>, Error> {
    match socket::ask(&configuration.socket, question, configuration.patience()) {
        Ok(Answer::Done(note)) => Ok(note),
        Ok(Answer::NotDone(why)) => Err(Error::new(code, why)),
        Err(error) => Err(silent(configuration, &error, Code::Later)),
    }
}

fn silent(configuration: &Configuration, error: &io::Error, code: Code) -> Error {
    let (socket, seconds) = (&configuration.socket, configuration.patience().as_secs());
    let message = format!(
        "nat-agent did not answer at {} within {seconds} s ({error})",
        socket.display()
    );
    Error::new(code, message).with(
        "new pods wait for it, so that none sends from a wrong address: look at this node's \
         nat-agent pod and its log. If natctl is not in use any more, take nat-cni out of the \
         node's network configuration",
    )
}

/// What the plugins before this one have made, as far as it is used.
#[derive(Default, Deserialize)]
struct Made {
    #[serde(default)]
    interfaces: Vec<Interface>,
    #[serde(default)]
    ips: Vec<Address>,
}

#[derive(Deserialize)]
struct Interface {
    name: String,
    #[serde(default)]
    sandbox: String,
}

#[derive(Deserialize)]
struct Address {
    /// With the length of its network.
    address: String,
}

/// The pod's interface; `None` if this is no pod of Kubernetes.
fn attachment(
    environment: &Environment,
    result: &Value,
    links: &Path,
) -> Result<Option<Attachment>, Error> {
    let argument = |name: &str| argument(&environment.arguments, name);
    let (Some(namespace), Some(name)) = (argument("K8S_POD_NAMESPACE"), argument("K8S_POD_NAME"))
    else {
        return Ok(None);
    };
    let undecodable = |error: String| {
        Error::new(
            Code::Undecodable,
            format!("prevResult cannot be read: {error}"),
        )
    };
    let made = match result {
        Value::Null => Made::default(),
        result => Made::deserialize(result).map_err(|error| undecodable(error.to_string()))?,
    };
    let addresses = made.ips.iter().map(|ip| {
        let address = ip.address.split('/').next().unwrap_or_default();
        let address: Result<IpAddr, _> = address.parse();
        address.map_err(|_| undecodable(format!("{:?} is no address", ip.address)))
    });
    Ok(Some(Attachment {
        namespace,
        name,
        uid: argument("K8S_POD_UID"),
        container: environment.container.clone(),
        addresses: addresses.collect::<Result<_, _>>()?,
        links: made
            .interfaces
            .iter()
            .filter(|interface| interface.sandbox.is_empty())
            .filter_map(|interface| link(links, &interface.name))
            .collect(),
    }))
}

fn argument(arguments: &BTreeMap<String, String>, name: &str) -> Option<String> {
    arguments
        .get(name)
        .filter(|value| !value.is_empty())
        .cloned()
}

/// The node's link of this name, if there is one: some plugins list what exists nowhere.
fn link(directory: &Path, name: &str) -> Option<Link> {
    if name.contains('/') {
        return None;
    }
    let number = fs::read_to_string(directory.join(name).join("ifindex")).ok()?;
    Some(Link {
        name: name.to_owned(),
        ifindex: number.trim().parse().ok()?,
    })
}

/// The result as it came. Runtimes leave its version out, and take one without for the oldest.
fn passed_on(result: &Value, version: &str) -> String {
    let mut result = result.clone();
    if let Value::Object(fields) = &mut result {
        fields.entry("cniVersion").or_insert_with(|| version.into());
    }
    result.to_string()
}

#[cfg(test)]
mod tests {
    use std::{
        io::{BufRead, BufReader, Write},
        os::unix::net::UnixListener,
        path::PathBuf,
        sync::atomic::{AtomicU32, Ordering},
        thread::JoinHandle,
    };

    use super::*;
    use crate::protocol::Request;

    /// A directory with a socket and a link, removed at the end.
    struct Node(PathBuf);

    impl Node {
        fn new() -> Self {
            static NUMBER: AtomicU32 = AtomicU32::new(0);
            let number = NUMBER.fetch_add(1, Ordering::Relaxed);
            let directory = format!("nat-cni-plugin-{}-{number}", std::process::id());
            let directory = std::env::temp_dir().join(directory);
            fs::create_dir_all(directory.join("links/veth7")).unwrap();
            fs::write(directory.join("links/veth7/ifindex"), "107\n").unwrap();
            Self(directory)
        }

        fn socket(&self) -> PathBuf {
            self.0.join("socket")
        }

        /// An agent that gives one answer and returns what it was asked.
        fn agent(&self, answer: &'static str) -> JoinHandle<Request> {
            let listener = UnixListener::bind(self.socket()).unwrap();
            std::thread::spawn(move || {
                let (stream, _) = listener.accept().unwrap();
                let mut line = String::new();
                BufReader::new(&stream).read_line(&mut line).unwrap();
                writeln!(&stream, "{answer}").unwrap();
                serde_json::from_str(&line).unwrap()
            })
        }

        fn run(&self, command: &str, arguments: &str, more: Value) -> Result<Done, Failure> {
            let mut input = json!({
                "cniVersion": "1.0.0", "name": "pods", "type": "nat-cni", "timeout": 1,
                "socket": self.socket(),
            });
            let fields = input.as_object_mut().unwrap();
            fields.extend(more.as_object().unwrap().clone());
            let get = |name: &str| match name {
                "CNI_COMMAND" => Some(command.to_owned()),
                "CNI_ARGS" => Some(arguments.to_owned()),
                "CNI_CONTAINERID" | "CNI_NETNS" | "CNI_IFNAME" => Some("c1".to_owned()),
                _ => None,
            };
            run(get, &input.to_string(), &self.0.join("links"))
        }
    }

    impl Drop for Node {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    const POD: &str = "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0;K8S_POD_UID=u1";

    fn made() -> Value {
        json!({
            "interfaces": [
                {"name": "veth7", "mac": "02:00:00:00:00:07", "mtu": 1500},
                {"name": "nowhere"},
                {"name": "eth0", "sandbox": "/run/netns/x", "socketPath": ""},
            ],
            "ips": [{"address": "10.244.1.7/24", "gateway": "10.244.1.1", "interface": 2}],
            "routes": [{"dst": "0.0.0.0/0", "priority": 7}],
            "dns": {},
            "unheardOf": [1],
        })
    }

    #[test]
    fn a_pod_is_announced_and_its_result_passed_on() {
        let node = Node::new();
        let agent = node.agent(r#"{"done":"all is well"}"#);
        let done = node.run("ADD", POD, json!({"prevResult": made()})).unwrap();
        let mut expected = made();
        expected["cniVersion"] = "1.0.0".into();
        assert_eq!(
            serde_json::from_str::<Value>(&done.output).unwrap(),
            expected
        );
        assert_eq!(done.note.as_deref(), Some("all is well"));
        let Question::Add(attachment) = agent.join().unwrap().question else {
            panic!("it asked something else");
        };
        assert_eq!(attachment.path(), "shop/web-0");
        assert_eq!(attachment.uid.as_deref(), Some("u1"));
        assert_eq!(
            attachment.addresses,
            ["10.244.1.7".parse::<IpAddr>().unwrap()]
        );
        let (name, ifindex) = ("veth7".to_owned(), 107);
        assert_eq!(attachment.links, [Link { name, ifindex }]);
    }

    #[test]
    fn a_pod_that_is_not_programmed_is_tried_again() {
        let node = Node::new();
        let _agent = node.agent(r#"{"notDone":"the agent has not seen it"}"#);
        let failure = node
            .run("ADD", POD, json!({"prevResult": made()}))
            .unwrap_err();
        assert_eq!(failure.error.code, Code::Later);
        let printed: Value = serde_json::from_str(&failure.to_string()).unwrap();
        assert_eq!(printed["cniVersion"], "1.0.0");
        assert_eq!(printed["code"], 11);
        assert_eq!(printed["msg"], "the agent has not seen it");
    }

    #[test]
    fn an_agent_that_is_away_stops_new_pods_and_no_others() {
        let node = Node::new();
        let result = json!({"prevResult": made()});
        let failure = node.run("ADD", POD, result.clone()).unwrap_err();
        assert_eq!(failure.error.code, Code::Later);
        assert!(failure.error.message.contains("within 1 s"), "{failure}");
        assert!(failure.error.details.contains("nat-agent pod"));
        assert_eq!(node.run("DEL", POD, result.clone()), Ok(Done::default()));
        assert_eq!(
            node.run("DEL", POD, json!({"cniVersion": "?"})),
            Ok(Done::default())
        );
        let failure = node.run("STATUS", "", json!({})).unwrap_err();
        assert_eq!(failure.error.code, Code::Unavailable);
        assert_eq!(node.run("GC", "", json!({})), Ok(Done::default()));
        // Not a pod: somebody else's container.
        assert!(node.run("ADD", "", result).is_ok());
    }

    #[test]
    fn an_agent_that_comes_back_in_time_is_waited_for() {
        let node = Node::new();
        std::thread::scope(|scope| {
            let late = scope.spawn(|| {
                std::thread::sleep(Duration::from_millis(300));
                node.agent(r#"{"done":null}"#)
            });
            assert_eq!(node.run("STATUS", "", json!({})), Ok(Done::default()));
            late.join().unwrap().join().unwrap();
        });
    }

    #[test]
    fn check_says_what_is_missing() {
        let node = Node::new();
        let agent = node.agent(r#"{"notDone":"no program"}"#);
        let failure = node
            .run("CHECK", POD, json!({"prevResult": made()}))
            .unwrap_err();
        assert_eq!(failure.error.code, Code::NotProgrammed);
        assert!(matches!(agent.join().unwrap().question, Question::Check(_)));
    }

    #[test]
    fn wrong_input_has_its_codes() {
        let node = Node::new();
        let code =
            |command: &str, more: Value| node.run(command, POD, more).unwrap_err().error.code;
        assert_eq!(code("ADD", json!({})), Code::Configuration);
        assert_eq!(code("ADD", json!({"cniVersion": "2.0.0"})), Code::Version);
        assert_eq!(
            code("ADD", json!({"prevResult": {"ips": 5}})),
            Code::Undecodable
        );
        let odd = json!({"prevResult": {"ips": [{"address": "x/24"}]}});
        assert_eq!(code("ADD", odd), Code::Undecodable);
        assert_eq!(code("SING", json!({})), Code::Environment);
    }

    #[test]
    fn versions_are_told_in_the_callers_version() {
        let node = Node::new();
        let told = |more| {
            let done = node.run("VERSION", "", more).unwrap();
            let told: Value = serde_json::from_str(&done.output).unwrap();
            assert_eq!(told["supportedVersions"], json!(VERSIONS));
            told["cniVersion"].clone()
        };
        assert_eq!(told(json!({})), "1.0.0");
        assert_eq!(told(json!({"cniVersion": ""})), "1.1.0");
    }
}
