//! One authority, and certificates and kubeconfigs for everybody who talks to the API server.

use std::fs::{self, DirBuilder};
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use anyhow::Result;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose, SanType,
};

use super::address::{self, API_PORT, API_SERVICE, CONTROL};

const API_NAMES: [&str; 5] = [
    "localhost",
    "kubernetes",
    "kubernetes.default",
    "kubernetes.default.svc",
    "kubernetes.default.svc.cluster.local",
];
/// Clients of the API server: the file's name, the user and the group that RBAC knows.
const CLIENTS: [(&str, &str, &str); 5] = [
    ("admin", "admin", "system:masters"),
    (
        "apiserver-kubelet-client",
        "kube-apiserver-kubelet-client",
        "",
    ),
    ("controller-manager", "system:kube-controller-manager", ""),
    ("scheduler", "system:kube-scheduler", ""),
    ("kube-proxy", "system:kube-proxy", ""),
];

/// What identifies a node to others: files of [`Authority::create`], and what they are called on the node.
pub fn node_files(number: u8) -> [(String, &'static str); 7] {
    [
        ("ca.crt".into(), "ca.crt"),
        (format!("n{number}.crt"), "kubelet.crt"),
        (format!("n{number}.key"), "kubelet.key"),
        (format!("n{number}-serving.crt"), "serving.crt"),
        (format!("n{number}-serving.key"), "serving.key"),
        ("kube-proxy.crt".into(), "kube-proxy.crt"),
        ("kube-proxy.key".into(), "kube-proxy.key"),
    ]
}

/// Writes all keys and certificates for a cluster of `nodes` nodes into `directory`.
pub fn create(directory: &Path, nodes: u8) -> Result<()> {
    // Whoever reads the keys is root of every node.
    DirBuilder::new().mode(0o700).create(directory)?;
    let authority = Authority::create(directory)?;
    authority.sign(
        "apiserver",
        server(
            "kube-apiserver",
            &API_NAMES,
            &[CONTROL, Ipv4Addr::LOCALHOST, API_SERVICE],
        )?,
    )?;
    for (file, user, group) in CLIENTS {
        authority.sign(file, client(user, group)?)?;
        fs::write(
            directory.join(format!("{file}.kubeconfig")),
            kubeconfig("ca.crt", file),
        )?;
    }
    for number in 1..=nodes {
        let name = format!("n{number}");
        authority.sign(
            &name,
            client(&format!("system:node:{name}"), "system:nodes")?,
        )?;
        authority.sign(
            &format!("{name}-serving"),
            server(&name, &[&name], &[address::node(number)])?,
        )?;
    }
    let accounts = KeyPair::generate()?;
    fs::write(
        directory.join("service-accounts.key"),
        accounts.serialize_pem(),
    )?;
    fs::write(
        directory.join("service-accounts.pub"),
        accounts.public_key_pem(),
    )?;
    Ok(())
}

/// A kubeconfig beside the files that it names.
pub fn kubeconfig(authority: &str, user: &str) -> String {
    format!(
        "apiVersion: v1\n\
         kind: Config\n\
         clusters: [{{name: cluster, cluster: {{server: \"https://{CONTROL}:{API_PORT}\", certificate-authority: {authority}}}}}]\n\
         users: [{{name: user, user: {{client-certificate: {user}.crt, client-key: {user}.key}}}}]\n\
         contexts: [{{name: context, context: {{cluster: cluster, user: user}}}}]\n\
         current-context: context\n"
    )
}

struct Authority {
    directory: PathBuf,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    fn create(directory: &Path) -> Result<Self> {
        let mut parameters = CertificateParams::new(Vec::new())?;
        parameters
            .distinguished_name
            .push(DnType::CommonName, "cluster");
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        parameters.key_usages = vec![
            KeyUsagePurpose::KeyCertSign,
            KeyUsagePurpose::DigitalSignature,
        ];
        let issuer = CertifiedIssuer::self_signed(parameters, KeyPair::generate()?)?;
        fs::write(directory.join("ca.crt"), issuer.pem())?;
        fs::write(directory.join("ca.key"), issuer.key().serialize_pem())?;
        Ok(Self {
            directory: directory.to_path_buf(),
            issuer,
        })
    }

    fn sign(&self, file: &str, parameters: CertificateParams) -> Result<()> {
        let key = KeyPair::generate()?;
        let certificate = parameters.signed_by(&key, &self.issuer)?;
        fs::write(
            self.directory.join(format!("{file}.crt")),
            certificate.pem(),
        )?;
        fs::write(
            self.directory.join(format!("{file}.key")),
            key.serialize_pem(),
        )?;
        Ok(())
    }
}

fn client(user: &str, group: &str) -> Result<CertificateParams> {
    let mut parameters = CertificateParams::new(Vec::new())?;
    parameters.distinguished_name.push(DnType::CommonName, user);
    if !group.is_empty() {
        parameters
            .distinguished_name
            .push(DnType::OrganizationName, group);
    }
    parameters.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    Ok(parameters)
}

fn server(user: &str, names: &[&str], addresses: &[Ipv4Addr]) -> Result<CertificateParams> {
    let names: Vec<_> = names.iter().map(ToString::to_string).collect();
    let mut parameters = CertificateParams::new(names)?;
    parameters.distinguished_name.push(DnType::CommonName, user);
    let addresses = addresses
        .iter()
        .map(|&address| SanType::IpAddress(IpAddr::V4(address)));
    parameters.subject_alt_names.extend(addresses);
    parameters.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    Ok(parameters)
}
