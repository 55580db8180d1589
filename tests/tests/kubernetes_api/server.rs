//! etcd and kube-apiserver on free ports of this machine, for one test.

use std::{
    env, fs,
    net::TcpListener,
    path::PathBuf,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use k8s_openapi::api::core::v1::Namespace;
use kube::{Api, Client, Config, config::AuthInfo};
use nat_tests::process::{Process, shortened};

const START: Duration = Duration::from_secs(90);
/// Tokens and whose they are: the administrator, and what the agent's ServiceAccount may do.
const TOKENS: &str = "admin,admin,1,system:masters\nagent,agent,2,agents\n";

/// An API server and its etcd. Dropped, both are ended and what they wrote is removed.
pub struct Server {
    directory: PathBuf,
    programs: PathBuf,
    etcd: [u16; 2],
    port: u16,
    /// etcd, then the API server while it runs.
    processes: Vec<Process>,
}

impl Server {
    /// Starts both.
    pub fn start(programs: PathBuf) -> Result<Self> {
        let name = format!("natctl-api-{}", std::process::id());
        let directory = env::temp_dir().join(name);
        let _ = fs::remove_dir_all(&directory);
        fs::create_dir_all(&directory)?;
        let key = rcgen::KeyPair::generate()?;
        fs::write(directory.join("accounts.key"), key.serialize_pem())?;
        fs::write(directory.join("accounts.pub"), key.public_key_pem())?;
        fs::write(directory.join("tokens.csv"), TOKENS)?;
        let mut server = Self {
            directory,
            programs,
            etcd: [free_port()?, free_port()?],
            port: free_port()?,
            processes: Vec::new(),
        };
        server.start_etcd()?;
        server.start_api()?;
        Ok(server)
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
            "--bind-address=127.0.0.1".to_owned(),
            format!("--secure-port={}", self.port),
            format!("--cert-dir={}", file("certificates")),
            format!("--token-auth-file={}", file("tokens.csv")),
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

    fn spawn(&mut self, name: &str, arguments: &[String]) -> Result<()> {
        let mut command = Command::new(self.programs.join(name));
        let log = self.directory.join(format!("{name}.log"));
        let process = Process::spawn(command.args(arguments), &log)?;
        self.processes.push(process);
        Ok(())
    }

    /// kill -9 of the API server.
    pub fn stop_api(&mut self) -> Result<()> {
        self.processes.pop().context("it does not run")?.kill()
    }

    /// Where it answers, for those in the network namespace that it was started in.
    pub fn url(&self) -> String {
        format!("https://127.0.0.1:{}", self.port)
    }

    /// A client with this token.
    pub fn client(&self, token: &str) -> Result<Client> {
        let mut config = Config::new(self.url().parse()?);
        // Its certificate is its own, made at its first start.
        config.accept_invalid_certs = true;
        config.auth_info = AuthInfo {
            token: Some(token.to_owned().into()),
            ..AuthInfo::default()
        };
        Ok(Client::try_from(config)?)
    }

    /// Waits until the API server answers.
    pub async fn ready(&mut self) -> Result<()> {
        let namespaces = Api::<Namespace>::all(self.client("admin")?);
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

fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}
