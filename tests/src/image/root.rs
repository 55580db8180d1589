//! The files of an image: programs of this machine with the libraries that they are linked with.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use tar::{Builder, EntryType, Header};

use crate::process;

const PROGRAMS: &str = "usr/bin";
const QUICK: Duration = Duration::from_secs(10);

/// Files by their paths below the root. The same files give the same image, whenever and by whom it is made.
#[derive(Default)]
pub struct Root {
    entries: BTreeMap<PathBuf, Entry>,
}

enum Entry {
    Directory,
    Program(PathBuf),
    Text(String),
    Link(PathBuf),
}

impl Root {
    /// Adds a program from the search path, and its libraries.
    pub fn add_program(&mut self, name: &str) -> Result<()> {
        let path = process::find(name).with_context(|| format!("{name} is not installed"))?;
        self.add_program_at(&path)
    }

    /// Adds the program in a file, and its libraries.
    pub fn add_program_at(&mut self, path: &Path) -> Result<()> {
        let name = path
            .file_name()
            .with_context(|| format!("{} is no file", path.display()))?;
        self.insert(
            &Path::new(PROGRAMS).join(name),
            Entry::Program(path.to_path_buf()),
        );
        let listed = process::run(Command::new("ldd").arg(path), QUICK)?;
        // It fails for a program that is linked statically.
        for library in libraries(&listed.stdout) {
            self.insert(&relative(&library), Entry::Program(library));
        }
        Ok(())
    }

    /// Adds busybox under the names of all its programs that are not there yet.
    pub fn add_busybox(&mut self) -> Result<()> {
        self.add_program("busybox")?;
        let path = process::find("busybox").context("busybox is not installed")?;
        let names = process::run(Command::new(path).arg("--list"), QUICK)?.success()?;
        for name in names.lines() {
            let path = Path::new(PROGRAMS).join(name);
            if !self.entries.contains_key(&path) {
                self.insert(&path, Entry::Link("busybox".into()));
            }
        }
        self.insert(Path::new("bin"), Entry::Link(PROGRAMS.into()));
        Ok(())
    }

    /// Adds a file.
    pub fn add_file(&mut self, path: &str, content: &str) {
        self.insert(Path::new(path), Entry::Text(content.into()));
    }

    /// Adds an empty directory.
    pub fn add_directory(&mut self, path: &str) {
        self.insert(Path::new(path), Entry::Directory);
    }

    /// Packs it all as a layer.
    pub fn pack(&self, target: impl Write) -> Result<()> {
        let mut archive = Builder::new(target);
        for (path, entry) in &self.entries {
            let (mut header, content) = entry.header()?;
            match entry {
                Entry::Link(to) => archive.append_link(&mut header, path, to),
                _ => archive.append_data(&mut header, path, content.as_slice()),
            }
            .with_context(|| path.display().to_string())?;
        }
        archive.finish()?;
        Ok(())
    }

    /// Writes it all as files below a directory, for a Dockerfile to copy.
    pub fn unpack(&self, directory: &Path) -> Result<()> {
        fs::create_dir_all(directory)?;
        for (path, entry) in &self.entries {
            let target = directory.join(path);
            match entry {
                Entry::Directory => fs::create_dir_all(&target),
                Entry::Program(source) => fs::copy(source, &target).map(drop),
                Entry::Text(text) => fs::write(&target, text),
                Entry::Link(to) => symlink(to, &target),
            }
            .and_then(|()| entry.permit(&target))
            .with_context(|| target.display().to_string())?;
        }
        Ok(())
    }

    fn insert(&mut self, path: &Path, entry: Entry) {
        for directory in path
            .ancestors()
            .skip(1)
            .filter(|directory| *directory != Path::new(""))
        {
            self.entries
                .entry(directory.to_path_buf())
                .or_insert(Entry::Directory);
        }
        self.entries.insert(path.to_path_buf(), entry);
    }
}

impl Entry {
    /// Gives its file the mode that it has in an archive, whatever the umask.
    fn permit(&self, path: &Path) -> io::Result<()> {
        match self.mode() {
            Some(mode) => fs::set_permissions(path, fs::Permissions::from_mode(mode)),
            None => Ok(()),
        }
    }

    /// None for a link, which has none of its own.
    fn mode(&self) -> Option<u32> {
        match self {
            Self::Directory | Self::Program(_) => Some(0o755),
            Self::Text(_) => Some(0o644),
            Self::Link(_) => None,
        }
    }

    /// What a tar archive says of it, but for its path, and its content.
    fn header(&self) -> Result<(Header, Vec<u8>)> {
        let (kind, content) = match self {
            Self::Directory => (EntryType::Directory, Vec::new()),
            Self::Program(path) => {
                let content = fs::read(path).with_context(|| path.display().to_string())?;
                (EntryType::Regular, content)
            }
            Self::Text(text) => (EntryType::Regular, text.clone().into_bytes()),
            Self::Link(_) => (EntryType::Symlink, Vec::new()),
        };
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(self.mode().unwrap_or(0o777));
        header.set_size(content.len() as u64);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        Ok((header, content))
    }
}

/// The files in ldd's list: `libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x...)`, and the loader by its path alone.
fn libraries(ldd: &str) -> Vec<PathBuf> {
    let path = |line: &str| {
        line.split_whitespace()
            .find(|word| word.starts_with('/'))
            .map(PathBuf::from)
    };
    ldd.lines().filter_map(path).collect()
}

/// Where a library goes: its own place, without links on the way to it.
fn relative(path: &Path) -> PathBuf {
    path.strip_prefix("/").unwrap_or(path).to_path_buf()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_read_from_ldd() {
        let list = "\tlinux-vdso.so.1 (0x00007ffd)\n\
            \tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f)\n\
            \t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n";
        let found = libraries(list);
        let expected = [
            "/lib/x86_64-linux-gnu/libc.so.6",
            "/lib64/ld-linux-x86-64.so.2",
        ];
        assert_eq!(found, expected.map(PathBuf::from));
        assert!(libraries("\tnot a dynamic executable\n").is_empty());
    }

    #[test]
    fn directories_come_before_what_is_in_them() {
        let mut root = Root::default();
        root.add_file("a/b/c", "text");
        let paths: Vec<_> = root
            .entries
            .keys()
            .map(|path| path.display().to_string())
            .collect();
        assert_eq!(paths, ["a", "a/b", "a/b/c"]);
    }
}
