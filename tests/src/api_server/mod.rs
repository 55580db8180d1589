//! A real API server, etcd and kube-apiserver, without nodes: for one test or benchmark.

mod audit;
mod objects;
mod proxy;

use std::{
    env,
    ffi::OsStr,
    fs,
    net::{Ipv4Addr, TcpListener},
    path::PathBuf,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use k8s_openapi::api::core::v1::Namespace;
use kube::{Api, Client, Config, config::AuthInfo};
use serde_json::{Value, json};

use crate::netns::Netns;
use crate::process::{self, Process, shortened};
pub use audit::Request;
pub use objects::{apply, eventually, manifests, patch_status};
pub use proxy::{Fault, Proxy};

const START: Duration = Duration::from_secs(90);
const QUICK: Duration = Duration::from_secs(10);
/// The user that [`AGENT`] stands for: what the manifests give the agents' role to.
const ACCOUNT: &str = "system:serviceaccount:natctl-system:nat-agent";
/// The administrator's token.
pub const ADMIN: &str = "admin";
/// The token of the agents' ServiceAccount.
pub const AGENT: &str = "agent";

/// An API server and its etcd. Dropped, both are ended and what they wrote is removed.
pub struct Server {
    directory: PathBuf,
    programs: PathBuf,
    namespace: Option<Netns>,
    address: Ipv4Addr,
    etcd: [u16; 2],
    port: u16,
    /// etcd, then the API server while it runs.
    processes: Vec<Process>,
}

impl Server {
    /// Starts both on free ports of this machine.
    pub fn start(programs: PathBuf) -> Result<Self> {
        Self::start_at(programs, None, Ipv4Addr::LOCALHOST)
    }

    /// Starts both in a namespace, where the API server has this address.
    pub fn start_in(programs: PathBuf, namespace: &Netns, address: Ipv4Addr) -> Result<Self> {
        Self::start_at(programs, Some(namespace.clone()), address)
    }

    fn start_at(programs: PathBuf, namespace: Option<Netns>, address: Ipv4Addr) -> Result<Self> {
        let name = format!("natctl-api-{}", std::process::id());
        let directory = env::temp_dir().join(name);
        let _ = fs::remove_dir_all(&directory);
        fs::create_dir_all(&directory)?;
        let mut server = Self {
            directory,
            programs,
            namespace,
            address,
            etcd: [free_port()?, free_port()?],
            port: free_port()?,
            processes: Vec::new(),
        };
        server.write_files()?;
        server.start_etcd()?;
        server.start_api()?;
        Ok(server)
    }

    fn write_files(&self) -> Result<()> {
        let key = rcgen::KeyPair::generate()?;
        let tokens = format!("{ADMIN},admin,1,system:masters\n{AGENT},{ACCOUNT},2,\n");
        for (name, content) in [
            ("accounts.key", key.serialize_pem()),
            ("accounts.pub", key.public_key_pem()),
            ("tokens.csv", tokens),
            ("audit.json", audit::policy(ACCOUNT)),
        ] {
            fs::write(self.directory.join(name), content)?;
        }
        Ok(())
    }

    fn start_etcd(&mut self) -> Result<()> {
        let [clients, peers] = self.etcd.map(|port| format!("http://127.0.0.1:{port}"));
        let data = self.directory.join("etcd");
        let arguments = [
            format!("--data-dir={}", data.display()),
            format!("--listen-client-urls={clients}"),
            format!("--advertise-client-urls={clients}"),
            format!("--listen-peer-urls={peers}"),
            format!("--initial-advertise-peer-urls={peers}"),
            format!("--initial-cluster=default={peers}"),
            "--unsafe-no-fsync".to_owned(),
        ];
        self.spawn("etcd", &arguments)
    }

    /// Starts the API server, again after [`Self::stop_api`].
    pub fn start_api(&mut self) -> Result<()> {
        let file = |name: &str| self.directory.join(name).display().to_string();
        let arguments = [
            format!("--etcd-servers=http://127.0.0.1:{}", self.etcd[0]),
            format!("--bind-address={}", self.address),
            format!("--advertise-address={}", self.advertised()),
            format!("--secure-port={}", self.port),
            format!("--cert-dir={}", file("certificates")),
            format!("--token-auth-file={}", file("tokens.csv")),
            format!("--audit-policy-file={}", file("audit.json")),
            format!("--audit-log-path={}", file(audit::LOG)),
            format!("--service-account-key-file={}", file("accounts.pub")),
            format!(
                "--service-account-signing-key-file={}",
                file("accounts.key")
            ),
            "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
            "--service-cluster-ip-range=10.96.0.0/16".to_owned(),
            "--authorization-mode=RBAC".to_owned(),
            // Nobody makes the default ServiceAccounts here.
            "--disable-admission-plugins=ServiceAccount".to_owned(),
        ];
        self.spawn("kube-apiserver", &arguments)
    }

    /// What it tells clients in the cluster to call it: it refuses a loopback address.
    fn advertised(&self) -> Ipv4Addr {
        if self.address.is_loopback() {
            Ipv4Addr::new(192, 0, 2, 254)
        } else {
            self.address
        }
    }

    fn spawn(&mut self, name: &str, arguments: &[String]) -> Result<()> {
        let mut command = self.command(self.programs.join(name));
        let log = self.directory.join(format!("{name}.log"));
        let process = Process::spawn(command.args(arguments), &log)?;
        self.processes.push(process);
        Ok(())
    }

    /// A command that will run where the server is.
    fn command(&self, program: impl AsRef<OsStr>) -> Command {
        match &self.namespace {
            Some(namespace) => namespace.command(program),
            None => Command::new(program),
        }
    }

    /// Has etcd forget everything but what is there now, as it does by itself every few minutes.
    pub fn compact(&self) -> Result<()> {
        let now = self.ask_etcd("range", &json!({"key": "AA=="}))?;
        let revision = now["header"]["revision"].clone();
        let compaction = json!({"revision": revision, "physical": true});
        self.ask_etcd("compaction", &compaction).map(drop)
    }

    fn ask_etcd(&self, what: &str, request: &Value) -> Result<Value> {
        let url = format!("http://127.0.0.1:{}/v3/kv/{what}", self.etcd[0]);
        let mut command = self.command("curl");
        command.args(["--silent", "--show-error", "--fail", "--data"]);
        let answer = process::run(command.arg(request.to_string()).arg(url), QUICK)?.success()?;
        serde_json::from_str(&answer).context(answer)
    }

    /// kill -9 of the API server.
    pub fn stop_api(&mut self) -> Result<()> {
        self.processes.pop().context("it does not run")?.kill()
    }

    /// A client with this token. Call where the server can be reached, within a tokio runtime.
    pub fn client(&self, token: &str) -> Result<Client> {
        Ok(Client::try_from(self.config(token)?)?)
    }

    fn config(&self, token: &str) -> Result<Config> {
        let mut config = Config::new(self.url().parse()?);
        // Its certificate is its own, made at its first start.
        config.accept_invalid_certs = true;
        config.auth_info = AuthInfo {
            token: Some(token.to_owned().into()),
            ..AuthInfo::default()
        };
        Ok(config)
    }

    /// A file for `KUBECONFIG` with this token.
    pub fn kubeconfig(&self, token: &str) -> Result<PathBuf> {
        let path = self.directory.join(format!("{token}.kubeconfig"));
        fs::write(&path, kubeconfig(&self.url(), token))?;
        Ok(path)
    }

    fn url(&self) -> String {
        format!("https://{}:{}", self.address, self.port)
    }

    /// Every request of the agents' ServiceAccount so far, a watch when it was answered first.
    pub fn requests(&self) -> Result<Vec<Request>> {
        audit::read(&self.directory.join(audit::LOG))
    }

    /// Waits until the API server answers.
    pub async fn ready(&mut self) -> Result<()> {
        let namespaces = Api::<Namespace>::all(self.client(ADMIN)?);
        let deadline = Instant::now() + START;
        loop {
            match namespaces.get("default").await {
                Ok(_) => return Ok(()),
                _ if Instant::now() > deadline || self.ended() => {
                    bail!("the API server does not answer:\n{}", self.log())
                }
                _ => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
    }

    fn ended(&mut self) -> bool {
        let mut processes = self.processes.iter_mut();
        processes.any(|process| !process.is_running())
    }

    fn log(&self) -> String {
        let api = self.processes.last().map(Process::output);
        shortened(&api.unwrap_or_default())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // The API server before what it talks to, and both before what they write to.
        while self.processes.pop().is_some() {}
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// What a file for `KUBECONFIG` says.
fn kubeconfig(url: &str, token: &str) -> String {
    json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "it",
        "clusters": [{"name": "it", "cluster": {"server": url, "insecure-skip-tls-verify": true}}],
        "users": [{"name": "it", "user": {"token": token}}],
        "contexts": [{"name": "it", "context": {"cluster": "it", "user": "it"}}],
    })
    .to_string()
}

fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}
