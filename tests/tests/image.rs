//! The agent's image, made twice: by us, and by buildah from deploy/Dockerfile.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use flate2::read::GzDecoder;
use nat_tests::netns::Netns;
use nat_tests::{deploy, image, process};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tar::{Archive, Entry, EntryType};

const PATIENCE: Duration = Duration::from_secs(120);
/// Where buildah notes what it has seen, wherever its images are.
const NOTES: &str = "/var/lib/containers/cache";
/// What a pod made of the image depends on, and is nobody's own.
const CONFIGURATION: [&str; 6] = ["Cmd", "Entrypoint", "Env", "User", "Volumes", "WorkingDir"];

/// What a file of an image is, but for its age.
#[derive(Debug, PartialEq, Eq)]
struct Kind {
    entry: EntryType,
    mode: u32,
    owner: (u64, u64),
    link: Option<PathBuf>,
    digest: String,
}

/// What an archive holds.
#[derive(Debug, PartialEq, Eq)]
struct Contents {
    configuration: Value,
    files: BTreeMap<PathBuf, Kind>,
}

/// A buildah with images of its own.
struct Buildah {
    directory: PathBuf,
    /// Without a way out: nothing can be fetched.
    nowhere: Netns,
    /// Nobody on this machine has used it before: nothing of it stays.
    first: bool,
}

impl Buildah {
    fn run(&self, line: &str) -> Result<()> {
        let own = |name: &str| self.directory.join(name);
        let mut command = self.nowhere.command("buildah");
        command
            .args(["--storage-driver", "vfs", "--root"])
            .arg(own("images"))
            .arg("--runroot")
            .arg(own("state"))
            .args(line.split_whitespace());
        process::run(&mut command, PATIENCE)?.success()?;
        Ok(())
    }
}

impl Drop for Buildah {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.directory);
        if self.first {
            let _ = fs::remove_dir_all(NOTES);
            // Only if nothing else is there.
            let _ = Path::new(NOTES).parent().map(fs::remove_dir);
        }
    }
}

fn contents(archive: &Path) -> Result<Contents> {
    let mut blobs = BTreeMap::new();
    for entry in Archive::new(File::open(archive)?).entries()? {
        let mut entry = entry?;
        let path = entry.path()?.into_owned();
        let mut content = Vec::new();
        entry.read_to_end(&mut content)?;
        blobs.insert(path, content);
    }
    let blob = |descriptor: &Value| {
        let digest = descriptor["digest"].as_str().context("no digest")?;
        let path = Path::new("blobs").join(digest.replace(':', "/"));
        blobs.get(&path).context(path.display().to_string())
    };
    let index: Value = serde_json::from_slice(&blobs[Path::new("index.json")])?;
    let manifest: Value = serde_json::from_slice(blob(&index["manifests"][0])?)?;
    let about: Value = serde_json::from_slice(blob(&manifest["config"])?)?;
    let layers = manifest["layers"].as_array().context("no layers")?;
    ensure!(layers.len() == 1, "{} layers", layers.len());
    Ok(Contents {
        configuration: configuration(&about),
        files: files(GzDecoder::new(blob(&layers[0])?.as_slice()))?,
    })
}

fn configuration(about: &Value) -> Value {
    let of_process = CONFIGURATION.map(|name| &about["config"][name]);
    json!([about["os"], about["architecture"], of_process])
}

fn files(layer: impl Read) -> Result<BTreeMap<PathBuf, Kind>> {
    let mut archive = Archive::new(layer);
    let entries = archive.entries()?;
    entries.map(|entry| file(entry?)).collect()
}

fn file(mut entry: Entry<'_, impl Read>) -> Result<(PathBuf, Kind)> {
    let mut content = Vec::new();
    entry.read_to_end(&mut content)?;
    let header = entry.header();
    let kind = Kind {
        entry: header.entry_type(),
        // Some archives carry the file's type there, too.
        mode: header.mode()? & 0o7777,
        owner: (header.uid()?, header.gid()?),
        link: entry.link_name()?.map(Into::into),
        digest: hexadecimal(&Sha256::digest(&content)),
    };
    Ok((entry.path()?.components().collect(), kind))
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Fails with the first file that is another.
fn compare(ours: &Contents, theirs: &Contents) -> Result<()> {
    ensure!(
        ours.configuration == theirs.configuration,
        "ours {}, theirs {}",
        ours.configuration,
        theirs.configuration
    );
    for path in ours.files.keys().chain(theirs.files.keys()) {
        let (own, other) = (ours.files.get(path), theirs.files.get(path));
        ensure!(own == other, "{}: {own:?}, {other:?}", path.display());
    }
    Ok(())
}

#[test]
fn the_dockerfile_makes_the_same_image() -> Result<()> {
    let name = format!("natimg-{}", std::process::id());
    let buildah = Buildah {
        nowhere: Netns::create(&name)?,
        first: !Path::new(NOTES).exists(),
        directory: std::env::temp_dir().join(name),
    };
    let directory = buildah.directory.join("image");
    let made = image::lay_out(&directory)?;
    let archive = buildah.directory.join("buildah.tar");
    buildah.run(&format!(
        "build --isolation chroot -f {} -t {} {}",
        deploy::manifests("Dockerfile").display(),
        made.reference,
        directory.display()
    ))?;
    buildah.run(&format!(
        "push {} oci-archive:{}",
        made.reference,
        archive.display()
    ))?;
    let ours = contents(&made.archive)?;
    ensure!(ours.files.contains_key(Path::new("usr/bin/nat-agent")));
    compare(&ours, &contents(&archive)?)
}
