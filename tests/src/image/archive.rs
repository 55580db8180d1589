//! An image as an OCI archive: layer, configuration, manifest and index in one tar file.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result, bail};
use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tar::{Builder, Header};

use super::root::Root;

const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const CONFIGURATION: &str = "application/vnd.oci.image.config.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const PATH: &str = "PATH=/usr/sbin:/usr/bin:/sbin:/bin";

/// An image of one layer.
pub struct Image {
    /// Its full name, with the part after the colon.
    pub reference: String,
    /// What is started; none: the pod has to say.
    pub entrypoint: Vec<String>,
    /// Its files.
    pub root: Root,
}

/// What the archive holds, named by its digest.
struct Blob {
    digest: String,
    content: Vec<u8>,
}

impl Image {
    /// Writes the archive. An earlier one stays whole until this one is.
    pub fn write(&self, path: &Path) -> Result<()> {
        let partial = path.with_extension("partial");
        let file = File::create(&partial).with_context(|| partial.display().to_string())?;
        self.pack(Builder::new(file))?;
        fs::rename(&partial, path).with_context(|| path.display().to_string())
    }

    fn pack(&self, mut archive: Builder<impl Write>) -> Result<()> {
        let mut plain = Vec::new();
        self.root.pack(&mut plain)?;
        let layer = Blob::new(compress(&plain)?);
        let configuration = Blob::of(&self.configuration(&digest(&plain))?)?;
        let manifest = Blob::of(&json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": configuration.descriptor(CONFIGURATION),
            "layers": [layer.descriptor(LAYER)],
        }))?;
        append(
            &mut archive,
            "oci-layout",
            br#"{"imageLayoutVersion":"1.0.0"}"#,
        )?;
        append(
            &mut archive,
            "index.json",
            &serde_json::to_vec(&self.index(&manifest))?,
        )?;
        for blob in [&layer, &configuration, &manifest] {
            append(
                &mut archive,
                &format!("blobs/sha256/{}", blob.digest),
                &blob.content,
            )?;
        }
        archive.into_inner()?.flush()?;
        Ok(())
    }

    fn configuration(&self, layer: &str) -> Result<Value> {
        let mut process = json!({ "Env": [PATH], "WorkingDir": "/" });
        if !self.entrypoint.is_empty() {
            process["Entrypoint"] = json!(self.entrypoint);
        }
        Ok(json!({
            "architecture": architecture()?,
            "os": "linux",
            "config": process,
            "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{layer}")] },
        }))
    }

    fn index(&self, manifest: &Blob) -> Value {
        let mut descriptor = manifest.descriptor(MANIFEST);
        descriptor["annotations"] = json!({
            // containerd takes the whole name from here, others the last part from the standard's own.
            "io.containerd.image.name": self.reference,
            "org.opencontainers.image.ref.name": self.reference.rsplit(':').next(),
        });
        json!({ "schemaVersion": 2, "manifests": [descriptor] })
    }
}

impl Blob {
    fn new(content: Vec<u8>) -> Self {
        Self {
            digest: digest(&content),
            content,
        }
    }

    fn of(value: &Value) -> Result<Self> {
        Ok(Self::new(serde_json::to_vec(value)?))
    }

    fn descriptor(&self, media_type: &str) -> Value {
        json!({
            "mediaType": media_type,
            "digest": format!("sha256:{}", self.digest),
            "size": self.content.len(),
        })
    }
}

fn digest(content: &[u8]) -> String {
    Sha256::digest(content)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

fn compress(plain: &[u8]) -> Result<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(plain)?;
    Ok(encoder.finish()?)
}

/// The machine's architecture as OCI calls it.
fn architecture() -> Result<&'static str> {
    Ok(match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => bail!("no name is known for the architecture {other}"),
    })
}

fn append(archive: &mut Builder<impl Write>, path: &str, content: &[u8]) -> Result<()> {
    let mut header = Header::new_gnu();
    header.set_mode(0o644);
    header.set_size(content.len() as u64);
    archive.append_data(&mut header, path, content)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packed() -> Vec<u8> {
        let mut root = Root::default();
        root.add_file("etc/passwd", "root");
        let image = Image {
            reference: "localhost/x:1".into(),
            entrypoint: vec!["/x".into()],
            root,
        };
        let mut bytes = Vec::new();
        image.pack(Builder::new(&mut bytes)).unwrap();
        bytes
    }

    /// The content of a file in the archive.
    fn find(archive: &[u8], name: &str) -> Vec<u8> {
        let mut archive = tar::Archive::new(archive);
        let mut entries = archive.entries().unwrap().map(Result::unwrap);
        let mut entry = entries
            .find(|entry| entry.path().unwrap() == Path::new(name))
            .unwrap();
        let mut content = Vec::new();
        std::io::Read::read_to_end(&mut entry, &mut content).unwrap();
        content
    }

    fn blob(archive: &[u8], descriptor: &Value) -> Vec<u8> {
        let digest = descriptor["digest"].as_str().unwrap();
        let content = find(archive, &format!("blobs/{}", digest.replace(':', "/")));
        assert_eq!(digest, format!("sha256:{}", super::digest(&content)));
        assert_eq!(descriptor["size"], content.len());
        content
    }

    #[test]
    fn every_digest_leads_to_its_content() {
        let archive = packed();
        let index: Value = serde_json::from_slice(&find(&archive, "index.json")).unwrap();
        let manifest: Value =
            serde_json::from_slice(&blob(&archive, &index["manifests"][0])).unwrap();
        let configuration: Value =
            serde_json::from_slice(&blob(&archive, &manifest["config"])).unwrap();
        assert_eq!(configuration["config"]["Entrypoint"], json!(["/x"]));
        let mut plain = Vec::new();
        let layer = blob(&archive, &manifest["layers"][0]);
        std::io::Read::read_to_end(&mut flate2::read::GzDecoder::new(&layer[..]), &mut plain)
            .unwrap();
        assert_eq!(
            configuration["rootfs"]["diff_ids"][0],
            format!("sha256:{}", digest(&plain))
        );
        assert_eq!(find(&plain, "etc/passwd"), b"root");
    }

    #[test]
    fn the_same_files_give_the_same_archive() {
        assert_eq!(packed(), packed());
    }
}
