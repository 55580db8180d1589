//! Finds a Rust toolchain that can compile for BPF, and runs it.
//!
//! The BPF target has no prebuilt standard library, so `core` is compiled from
//! source: that takes rust-src and a compiler that accepts `-Z build-std`. Two are
//! looked for: rustup's nightly, and Debian's rustc-web packages, whose stable
//! compiler accepts it under `RUSTC_BOOTSTRAP=1`.
//!
//! Only the standard library is used here, because nat-agent's build script
//! includes this file.

use std::{
    env, fmt,
    path::{Path, PathBuf},
    process::Command,
};

/// The target triple of the BPF objects.
pub const TARGET: &str = "bpfel-unknown-none";

/// `--btf` keeps the types of maps and programs for the loader and the kernel; v3 has
/// 32-bit operations and atomic ones that return a value (kernel 5.12).
const RUSTFLAGS: &str = "-C debuginfo=2 -C target-cpu=v3 -C link-arg=--btf \
     -C link-arg=--disable-expand-memcpy-in-order";

/// The oldest release that compiles this workspace, as in Cargo.toml.
const MINIMUM: (u32, u32) = (1, 95);

/// Where Debian's packages put the compiler.
const DEBIAN_BIN: &str = "/usr/bin";

/// Where a toolchain comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// rustup's nightly with the component rust-src.
    Nightly,
    /// Debian's rustc-web, cargo-web and rust-web-src.
    Debian,
}

/// A toolchain with rust-src that accepts unstable options.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Toolchain {
    pub origin: Origin,
    /// The directory of cargo and rustc.
    pub bin: PathBuf,
    /// The compiler's own version line.
    pub version: String,
    /// The major version of the compiler's LLVM.
    pub llvm: u32,
}

/// bpf-linker, and what is known of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Linker {
    pub path: PathBuf,
    /// The major version of its LLVM; unknown where it is linked statically.
    pub llvm: Option<u32>,
}

/// Why no BPF object can be built, in words for a person.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Missing {
    Toolchain,
    Linker,
    /// Every toolchain found writes bitcode too new for the linker.
    Match {
        compiler: u32,
        linker: u32,
    },
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Toolchain => write!(
                f,
                "no Rust toolchain of release {}.{} or later that can compile for BPF: neither \
                 rustup's nightly with rust-src (rustup toolchain install nightly --component \
                 rust-src) nor Debian's packages (apt-get install rustc-web cargo-web \
                 rust-web-src) are installed",
                MINIMUM.0, MINIMUM.1
            ),
            Self::Linker => write!(f, "bpf-linker is not installed"),
            Self::Match { compiler, linker } => write!(
                f,
                "bpf-linker was built with LLVM {linker}, which cannot read what the compiler's \
                 LLVM {compiler} writes: it has to be built again with LLVM {compiler}"
            ),
        }
    }
}

impl std::error::Error for Missing {}

/// Variable that has drops logged one by one; for developers.
pub const LOG: &str = "NAT_EBPF_LOG";

/// Everything that building the BPF objects takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Builder {
    pub toolchain: Toolchain,
    pub linker: Linker,
}

impl Builder {
    /// Finds the toolchain and the linker.
    pub fn find() -> Result<Self, Missing> {
        let toolchains = toolchains();
        let linker = Linker::find();
        choose(toolchains, linker)
    }

    /// A cargo command for nat-ebpf on the BPF target. `program` is `cargo`, or
    /// `cargo-clippy` with its own arguments.
    pub fn command(&self, program: &str, subcommand: &str, workspace: &Path) -> Command {
        let mut command = Command::new(self.toolchain.bin.join(program));
        leave_outer_build(&mut command);
        command
            .env("CARGO", self.toolchain.bin.join("cargo"))
            .env("RUSTC", self.toolchain.bin.join("rustc"))
            .env("RUSTFLAGS", RUSTFLAGS)
            .env("CARGO_TARGET_BPFEL_UNKNOWN_NONE_LINKER", &self.linker.path);
        if self.toolchain.origin == Origin::Debian {
            command.env("RUSTC_BOOTSTRAP", "1");
        }
        command
            .current_dir(workspace.join("nat-ebpf"))
            .args([subcommand, "--release", "--target", TARGET])
            .args(["-Z", "build-std=core", "--target-dir"])
            .arg(target_dir(workspace));
        if env::var_os(LOG).is_some() {
            command.args(["--features", "log"]);
        }
        command
    }
}

impl Linker {
    /// Looks on PATH, then where `cargo install` puts programs, which is not on
    /// everybody's PATH (sudo).
    pub fn find() -> Option<Self> {
        let path = env::var_os("PATH").unwrap_or_default();
        let cargo_home = env::var_os("CARGO_HOME")
            .map(PathBuf::from)
            .or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cargo")));
        let path = env::split_paths(&path)
            .chain(cargo_home.map(|home| home.join("bin")))
            .map(|dir| dir.join("bpf-linker"))
            .find(|file| file.is_file())?;
        let llvm = output(Command::new("ldd").arg(&path)).and_then(|ldd| linked_llvm(&ldd));
        Some(Self { path, llvm })
    }
}

/// Every toolchain on this machine that can compile for BPF, the preferred one first.
pub fn toolchains() -> Vec<Toolchain> {
    let nightly = output(
        Command::new("rustup")
            .args(["run", "nightly", "rustc", "--print", "sysroot"])
            // Looking for a toolchain must not download one.
            .env("RUSTUP_AUTO_INSTALL", "0")
            .env_remove("RUSTUP_TOOLCHAIN"),
    )
    .map(|sysroot| (Origin::Nightly, Path::new(sysroot.trim()).join("bin")));
    let debian = (Origin::Debian, PathBuf::from(DEBIAN_BIN));
    nightly
        .into_iter()
        .chain([debian])
        .filter_map(|(origin, bin)| inspect(origin, bin))
        .collect()
}

/// The target directory of the BPF build. It is not the host build's own, or the
/// build script would wait for the lock of the build that runs it.
pub fn target_dir(workspace: &Path) -> PathBuf {
    host_target_dir(workspace).join("bpf")
}

/// The host build's target directory.
pub fn host_target_dir(workspace: &Path) -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(
        || workspace.join("target"),
        |dir| workspace.join(PathBuf::from(dir)),
    )
}

/// Where the build leaves an object: `nat` or `bench`.
pub fn object(workspace: &Path, name: &str) -> PathBuf {
    target_dir(workspace)
        .join(TARGET)
        .join("release")
        .join(name)
}

/// Keeps what cargo and rustup set for the build that this runs inside of from a
/// command, so that it starts as from a shell.
pub fn leave_outer_build(command: &mut Command) {
    for (name, _) in env::vars_os() {
        if name.to_str().is_some_and(belongs_to_outer_build) {
            command.env_remove(name);
        }
    }
}

fn choose(toolchains: Vec<Toolchain>, linker: Option<Linker>) -> Result<Builder, Missing> {
    let compiler = toolchains.first().ok_or(Missing::Toolchain)?.llvm;
    let linker = linker.ok_or(Missing::Linker)?;
    // LLVM reads the bitcode of older releases, not of newer ones.
    let readable = |t: &Toolchain| linker.llvm.is_none_or(|linker| t.llvm <= linker);
    match (toolchains.into_iter().find(readable), linker.llvm) {
        (Some(toolchain), _) => Ok(Builder { toolchain, linker }),
        (None, llvm) => Err(Missing::Match {
            compiler,
            linker: llvm.unwrap_or_default(),
        }),
    }
}

fn inspect(origin: Origin, bin: PathBuf) -> Option<Toolchain> {
    let rustc = bin.join("rustc");
    if !rustc.is_file() || !bin.join("cargo").is_file() {
        return None;
    }
    let sysroot = output(Command::new(&rustc).args(["--print", "sysroot"]))?;
    let core = Path::new(sysroot.trim()).join("lib/rustlib/src/rust/library/core");
    if !core.is_dir() {
        return None;
    }
    let verbose = output(Command::new(&rustc).arg("-vV"))?;
    if compiler_release(&verbose)? < MINIMUM {
        return None;
    }
    Some(Toolchain {
        origin,
        bin,
        version: verbose.lines().next()?.to_owned(),
        llvm: compiler_llvm(&verbose)?,
    })
}

/// The release in `rustc -vV`: major and minor version.
fn compiler_release(verbose: &str) -> Option<(u32, u32)> {
    let release = verbose
        .lines()
        .find_map(|line| line.strip_prefix("release: "))?;
    let mut parts = release.split('.').map(str::parse);
    Some((parts.next()?.ok()?, parts.next()?.ok()?))
}

/// The LLVM major version in `rustc -vV`.
fn compiler_llvm(verbose: &str) -> Option<u32> {
    let version = verbose
        .lines()
        .find_map(|line| line.strip_prefix("LLVM version: "))?;
    version.split('.').next()?.parse().ok()
}

/// The LLVM major version in `ldd`'s list of libraries: `libLLVM.so.22.1` or `libLLVM-19.so.1`.
fn linked_llvm(ldd: &str) -> Option<u32> {
    let name = ldd
        .split_whitespace()
        .find_map(|word| word.strip_prefix("libLLVM"))?;
    name.split(|c: char| !c.is_ascii_digit())
        .find(|part| !part.is_empty())?
        .parse()
        .ok()
}

/// Whether a variable was set for the build that this runs inside of, by cargo for
/// its build scripts and `cargo run`, or by rustup's proxies, and would lead the inner
/// build to the wrong compiler, flags or directory.
fn belongs_to_outer_build(name: &str) -> bool {
    const OURS_TO_KEEP: [&str; 6] = [
        "CARGO_HOME",
        "CARGO_HTTP_",
        "CARGO_NET_",
        "CARGO_REGISTR",
        "CARGO_SOURCE_",
        "CARGO_TERM_",
    ];
    const EXACT: [&str; 13] = [
        "DEBUG",
        "HOST",
        "LD_LIBRARY_PATH",
        "MAKEFLAGS",
        "MFLAGS",
        "NUM_JOBS",
        "OPT_LEVEL",
        "OUT_DIR",
        "PROFILE",
        "RUSTFLAGS",
        "RUSTUP_TOOLCHAIN",
        "RUST_RECURSION_COUNT",
        "TARGET",
    ];
    let of_cargo = name == "CARGO" || name.starts_with("CARGO_");
    let kept = OURS_TO_KEEP.iter().any(|prefix| name.starts_with(prefix));
    let of_rustc = name.starts_with("RUSTC") || name.starts_with("RUSTDOC");
    (of_cargo && !kept) || of_rustc || EXACT.contains(&name)
}

/// A command's standard output, if it succeeds.
fn output(command: &mut Command) -> Option<String> {
    let output = command.output().ok().filter(|o| o.status.success())?;
    String::from_utf8(output.stdout).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn toolchain(origin: Origin, llvm: u32) -> Toolchain {
        Toolchain {
            origin,
            bin: PathBuf::from("/bin"),
            version: String::new(),
            llvm,
        }
    }

    fn linker(llvm: Option<u32>) -> Option<Linker> {
        let path = PathBuf::from("/bin/bpf-linker");
        Some(Linker { path, llvm })
    }

    #[test]
    fn the_first_toolchain_that_the_linker_can_read_is_chosen() {
        let both = || {
            vec![
                toolchain(Origin::Nightly, 23),
                toolchain(Origin::Debian, 22),
            ]
        };
        let origin = |llvm| choose(both(), linker(llvm)).map(|b| b.toolchain.origin);
        assert_eq!(origin(Some(23)), Ok(Origin::Nightly));
        assert_eq!(origin(Some(22)), Ok(Origin::Debian));
        assert_eq!(origin(None), Ok(Origin::Nightly));
        let too_old = Missing::Match {
            compiler: 23,
            linker: 21,
        };
        assert_eq!(origin(Some(21)), Err(too_old));
    }

    #[test]
    fn what_is_missing_is_named_with_the_way_to_get_it() {
        let no_toolchain = choose(vec![], None).unwrap_err();
        assert_eq!(no_toolchain, Missing::Toolchain);
        let words = no_toolchain.to_string();
        assert!(words.contains("rust-src") && words.contains("rust-web-src"));
        let no_linker = choose(vec![toolchain(Origin::Debian, 22)], None).unwrap_err();
        assert_eq!(no_linker, Missing::Linker);
        assert!(no_linker.to_string().contains("bpf-linker"));
    }

    #[test]
    fn versions_are_read_from_rustc_and_ldd() {
        let verbose = "rustc 1.96.0\nrelease: 1.96.0\nLLVM version: 22.1.8\n";
        assert_eq!(compiler_llvm(verbose), Some(22));
        assert_eq!(compiler_release(verbose), Some((1, 96)));
        let nightly = "release: 1.97.0-nightly\n";
        assert_eq!(compiler_release(nightly), Some((1, 97)));
        assert_eq!(compiler_llvm("rustc 1.96.0\n"), None);
        let new = "\tlibLLVM.so.22.1 => /usr/lib/llvm-22/lib/libLLVM.so.22.1 (0x0)\n";
        assert_eq!(linked_llvm(new), Some(22));
        assert_eq!(
            linked_llvm("\tlibLLVM-19.so.1 => /usr/lib/x (0x0)"),
            Some(19)
        );
        assert_eq!(linked_llvm("\tlibc.so.6 => /lib/libc.so.6 (0x0)"), None);
    }

    #[test]
    fn the_outer_build_is_kept_out_and_the_users_network_settings_are_kept() {
        for name in [
            "CARGO",
            "CARGO_MANIFEST_DIR",
            "CARGO_ENCODED_RUSTFLAGS",
            "CARGO_TARGET_DIR",
            "RUSTC",
            "RUSTC_WORKSPACE_WRAPPER",
            "RUSTUP_TOOLCHAIN",
            "LD_LIBRARY_PATH",
        ] {
            assert!(belongs_to_outer_build(name), "{name}");
        }
        for name in [
            "CARGO_HOME",
            "CARGO_NET_OFFLINE",
            "RUSTUP_HOME",
            "PATH",
            "HOME",
        ] {
            assert!(!belongs_to_outer_build(name), "{name}");
        }
    }
}
