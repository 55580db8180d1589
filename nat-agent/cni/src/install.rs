//! The plugin's files on a node: its program, and its entry in the network configuration. Files are
//! replaced whole: the runtime watches the directory, and must never read half of one.

use std::{
    fs::{self, File, Permissions},
    io::{ErrorKind, Write},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};

use crate::{NAME, conflist};

/// What the runtime takes for network configurations. It uses the first by name.
const CONFIGURATIONS: [&str; 3] = ["conf", "conflist", "json"];
const LIST: &str = "conflist";
/// No runtime reads files of this extension.
const UNFINISHED: &str = "natctl";

/// What was found in a directory of network configurations, and done about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Chained {
    /// There is no configuration yet.
    NoneThere,
    /// This one has the plugin already.
    Already(PathBuf),
    /// This one has got it.
    Now(PathBuf),
}

/// Chains the plugin to the network configuration that the runtime uses.
///
/// # Errors
/// That is no list, or it cannot be read or written.
pub fn chain(directory: &Path) -> Result<Chained> {
    let Some(first) = configurations(directory)?.into_iter().next() else {
        return Ok(Chained::NoneThere);
    };
    if !is_list(&first) {
        bail!(
            "{}, which the runtime uses, has room for one plugin only, and nat-cni has to come \
             after it: make it a list, FILE.conflist with \"plugins\": [...]",
            first.display()
        );
    }
    let changed = edit(&first, conflist::with_plugin)?;
    Ok(match changed {
        true => Chained::Now(first),
        false => Chained::Already(first),
    })
}

/// Takes the plugin out of every network configuration, and returns those that had it.
///
/// # Errors
/// One cannot be read or written.
pub fn unchain(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut changed = Vec::new();
    for path in configurations(directory)? {
        if is_list(&path) && edit(&path, conflist::without_plugin)? {
            changed.push(path);
        }
    }
    Ok(changed)
}

/// Copies the plugin's program; whether it was not there yet as it is.
///
/// # Errors
/// It cannot be read or written.
pub fn place(program: &Path, directory: &Path) -> Result<bool> {
    let content = fs::read(program).with_context(|| program.display().to_string())?;
    let target = directory.join(NAME);
    if fs::read(&target).is_ok_and(|there| there == content) {
        return Ok(false);
    }
    replace(&target, &content, 0o755)?;
    Ok(true)
}

/// Removes the plugin's program; whether it was there.
///
/// # Errors
/// It cannot be removed.
pub fn displace(directory: &Path) -> Result<bool> {
    let target = directory.join(NAME);
    match fs::remove_file(&target) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error).with_context(|| format!("remove {}", target.display())),
    }
}

/// The network configurations, the runtime's choice first.
fn configurations(directory: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(directory).with_context(|| directory.display().to_string())?;
    let mut paths = Vec::new();
    for entry in entries {
        let path = entry?.path();
        let extension = path.extension().and_then(|extension| extension.to_str());
        if extension.is_some_and(|extension| CONFIGURATIONS.contains(&extension)) {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

fn is_list(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == LIST)
}

/// Changes a file; whether there was anything to change.
fn edit(path: &Path, change: impl Fn(&str) -> Result<Option<String>>) -> Result<bool> {
    let name = || path.display().to_string();
    let text = fs::read_to_string(path).with_context(name)?;
    let Some(changed) = change(&text).with_context(name)? else {
        return Ok(false);
    };
    let mode = fs::metadata(path).with_context(name)?.permissions().mode();
    replace(path, changed.as_bytes(), mode)?;
    Ok(true)
}

/// Puts a file in the place of another at once.
fn replace(path: &Path, content: &[u8], mode: u32) -> Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".");
    name.push(UNFINISHED);
    let unfinished = path.with_file_name(name);
    let write = || -> std::io::Result<()> {
        let mut file = File::create(&unfinished)?;
        file.write_all(content)?;
        file.set_permissions(Permissions::from_mode(mode))?;
        file.sync_all()?;
        fs::rename(&unfinished, path)
    };
    write().with_context(|| format!("write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A directory, removed at the end.
    struct Directory(PathBuf);

    impl Directory {
        fn new(name: &str) -> Self {
            let name = format!("nat-cni-{name}-{}", std::process::id());
            let path = std::env::temp_dir().join(name);
            fs::create_dir_all(&path).unwrap();
            Self(path)
        }

        fn write(&self, name: &str, text: &str) -> PathBuf {
            let path = self.0.join(name);
            fs::write(&path, text).unwrap();
            path
        }

        fn names(&self) -> Vec<String> {
            let entries = fs::read_dir(&self.0).unwrap();
            let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
            let mut names: Vec<String> = names.collect();
            names.sort();
            names
        }
    }

    impl Drop for Directory {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    const LIST: &str = r#"{"cniVersion": "1.0.0", "plugins": [{"type": "ptp"}]}"#;

    #[test]
    fn the_first_configuration_gets_it() {
        let directory = Directory::new("first");
        assert_eq!(chain(&directory.0).unwrap(), Chained::NoneThere);
        let second = directory.write("20-b.conflist", LIST);
        let first = directory.write("10-a.conflist", LIST);
        directory.write("00-readme.txt", "none of the runtime's");
        fs::set_permissions(&first, Permissions::from_mode(0o600)).unwrap();
        assert_eq!(chain(&directory.0).unwrap(), Chained::Now(first.clone()));
        assert_eq!(
            chain(&directory.0).unwrap(),
            Chained::Already(first.clone())
        );
        assert!(fs::read_to_string(&first).unwrap().contains(NAME));
        assert_eq!(fs::read_to_string(&second).unwrap(), LIST);
        assert_eq!(
            first.metadata().unwrap().permissions().mode() & 0o777,
            0o600
        );
        let names = ["00-readme.txt", "10-a.conflist", "20-b.conflist"];
        assert_eq!(directory.names(), names, "nothing is left lying about");
    }

    #[test]
    fn all_lose_it() {
        let directory = Directory::new("all");
        let first = directory.write("10-a.conflist", LIST);
        chain(&directory.0).unwrap();
        // Another CNI comes, and is the runtime's choice from now on.
        let other = directory.write("05-b.conflist", LIST);
        chain(&directory.0).unwrap();
        assert_eq!(
            unchain(&directory.0).unwrap(),
            [other.clone(), first.clone()]
        );
        assert_eq!(unchain(&directory.0).unwrap(), [] as [PathBuf; 0]);
        for path in [first, other] {
            assert_eq!(fs::read_to_string(path).unwrap(), LIST);
        }
    }

    #[test]
    fn one_plugins_configuration_is_refused_with_what_to_do() {
        let directory = Directory::new("single");
        directory.write("20-b.conflist", LIST);
        let text = r#"{"cniVersion": "1.0.0", "type": "ptp"}"#;
        let path = directory.write("10-a.conf", text);
        let error = chain(&directory.0).unwrap_err().to_string();
        assert!(
            error.contains("10-a.conf") && error.contains("make it a list"),
            "{error}"
        );
        assert_eq!(fs::read_to_string(path).unwrap(), text);
        assert!(chain(&directory.0.join("nowhere")).is_err());
    }

    #[test]
    fn the_program_is_replaced_whole() {
        let directory = Directory::new("program");
        let program = directory.write("new", "program");
        assert!(place(&program, &directory.0).unwrap());
        assert!(!place(&program, &directory.0).unwrap());
        let placed = directory.0.join(NAME);
        assert_eq!(
            placed.metadata().unwrap().permissions().mode() & 0o777,
            0o755
        );
        fs::write(&placed, "older").unwrap();
        assert!(place(&program, &directory.0).unwrap());
        assert_eq!(fs::read_to_string(&placed).unwrap(), "program");
        assert!(displace(&directory.0).unwrap());
        assert!(!displace(&directory.0).unwrap());
    }
}
