//! The guest: a stock Debian cloud kernel and an initramfs with busybox, the virtio modules, iperf3, ethtool,
//! ping and numbers, built once into `target/guest/`. A stamp of all inputs says when to build again.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{bail, Context, Result};

use crate::process;
use crate::settings::{find_tool, run_tool, tool};

/// Bumped when the contents change in a way the stamp's other parts do not show.
const RECIPE: &str = "1";
const INIT: &str = include_str!("guest-init.sh");
/// In the order in which they must be inserted.
const MODULES: &[&str] = &[
    "virtio_ring",
    "virtio",
    "virtio_pci_modern_dev",
    "virtio_pci_legacy_dev",
    "virtio_pci",
    "failover",
    "net_failover",
    "virtio_net",
    "evdev",
    "button",
];
/// What busybox lacks: iperf3 and ethtool altogether, a ping with fractions of a second, a date with nanoseconds.
const PROGRAMS: &[&str] = &["iperf3", "ethtool", "ping", "date"];
/// Built for the guest from one file (`guest/numbers.rs`).
const NUMBERS: &str = include_str!("guest/numbers.rs");
const META_PACKAGE: &str = "linux-image-cloud-amd64";
const PATIENCE: Duration = Duration::from_secs(300);

/// What QEMU boots.
#[derive(Clone)]
pub struct Image {
    /// The kernel.
    pub kernel: PathBuf,
    /// The initramfs.
    pub initramfs: PathBuf,
}

/// The image in `root/target/guest`, built if it is not there or out of date; `say` tells what takes time.
pub fn build(root: &Path, say: impl Fn(&str)) -> Result<Image> {
    let dir = root.join("target/guest");
    let image = Image {
        kernel: dir.join("vmlinuz"),
        initramfs: dir.join("initramfs.gz"),
    };
    let stamp = stamp()?;
    let stamp_file = dir.join("stamp");
    if fs::read_to_string(&stamp_file).is_ok_and(|found| found == stamp) {
        return Ok(image);
    }
    say("building the guest image (kernel package, initramfs)");
    // Built beside and moved into place, so an interrupted build leaves no half image behind.
    fs::create_dir_all(&dir)?;
    let _ = fs::remove_file(&stamp_file);
    let work = tempfile::tempdir_in(&dir)?;
    let kernel_tree = unpack_kernel(work.path())?;
    let tree = work.path().join("initramfs");
    fill_initramfs(&tree, &kernel_tree)?;
    pack(&tree, &work.path().join("initramfs.gz"))?;
    fs::rename(work.path().join("initramfs.gz"), &image.initramfs)?;
    fs::rename(find_one(&kernel_tree.join("boot"), "vmlinuz-")?, &image.kernel)?;
    fs::write(&stamp_file, stamp)?;
    Ok(image)
}

/// Everything the image depends on, as text.
fn stamp() -> Result<String> {
    let mut stamp = format!("{RECIPE}\n{INIT}\n{NUMBERS}\n");
    for program in PROGRAMS.iter().chain(&["busybox"]) {
        let file = find_tool(program).with_context(|| format!("no {program}"))?;
        let data = fs::metadata(&file)?;
        stamp += &format!("{program} {} {:?}\n", data.len(), data.modified()?);
    }
    Ok(stamp)
}

/// Downloads and unpacks the kernel package that the meta package depends on today.
fn unpack_kernel(work: &Path) -> Result<PathBuf> {
    let downloads = work.join("download");
    fs::create_dir(&downloads)?;
    // The package lists may be older than the archive, which keeps only the newest kernel: then refresh them once.
    if download_kernel(&downloads).is_err() {
        run_apt("apt-get", &["update", "-q"], work)?;
        download_kernel(&downloads)?;
    }
    let tree = work.join("kernel");
    let package = find_one(&downloads, "linux-image-")?;
    run_tool("dpkg", &["-x", path(&package)?, path(&tree)?])?;
    Ok(tree)
}

fn download_kernel(dir: &Path) -> Result<()> {
    let depends = run_apt("apt-cache", &["depends", META_PACKAGE], dir)?;
    let package = depends
        .split_whitespace()
        .find(|word| word.starts_with("linux-image-") && *word != META_PACKAGE)
        .with_context(|| format!("{META_PACKAGE} depends on no kernel"))?;
    // As root into a directory that the user _apt cannot write, hence no sandbox.
    run_apt(
        "apt-get",
        &["download", "-q", "-o", "APT::Sandbox::User=root", package],
        dir,
    )
    .map(drop)
}

fn run_apt(name: &str, args: &[&str], dir: &Path) -> Result<String> {
    let mut command = tool(name);
    command.args(args).current_dir(dir).env("LC_ALL", "C");
    process::run(command, PATIENCE)
}

fn fill_initramfs(tree: &Path, kernel_tree: &Path) -> Result<()> {
    for dir in ["bin", "modules"] {
        fs::create_dir_all(tree.join(dir))?;
    }
    let init = tree.join("init");
    fs::write(&init, INIT)?;
    fs::set_permissions(&init, fs::Permissions::from_mode(0o755))?;
    install(
        &find_tool("busybox").context("no busybox")?,
        &tree.join("bin/busybox"),
    )?;
    for program in PROGRAMS {
        let file = find_tool(program).with_context(|| format!("no {program}"))?;
        install_program(&file, program, tree)?;
    }
    install_program(&compile_numbers(kernel_tree)?, "numbers", tree)?;
    let mut order = String::new();
    for name in MODULES {
        let file = format!("{name}.ko");
        install_module(kernel_tree, &file, &tree.join("modules").join(&file))?;
        order += &format!("{file}\n");
    }
    fs::write(tree.join("modules/order"), order)?;
    Ok(())
}

/// The compiler is there: it has made this program, and Cargo has run it.
fn compile_numbers(work: &Path) -> Result<PathBuf> {
    let (source, program) = (work.join("numbers.rs"), work.join("numbers"));
    fs::write(&source, NUMBERS)?;
    let arguments = ["--edition", "2021", "-O", "-o", path(&program)?, path(&source)?];
    run_tool("rustc", &arguments)?;
    Ok(program)
}

/// Not in /bin, where busybox has a ping of its own.
fn install_program(file: &Path, name: &str, tree: &Path) -> Result<()> {
    install(file, &tree.join("opt").join(name))?;
    for library in libraries(file)? {
        install(&library, &tree.join(library.strip_prefix("/")?))?;
    }
    Ok(())
}

/// The shared libraries a program is loaded with, the loader among them.
fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let listing = run_tool("ldd", &[path(program)?])?;
    let paths = listing.split_whitespace().filter(|word| word.starts_with('/'));
    Ok(paths.map(PathBuf::from).collect())
}

fn install(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to.parent().context("a file has a directory")?)?;
    fs::copy(from, to).with_context(|| format!("cannot copy {}", from.display()))?;
    Ok(())
}

/// Newer Debian kernels have their modules compressed, which busybox cannot insert.
fn install_module(kernel_tree: &Path, file: &str, to: &Path) -> Result<()> {
    let listing = run_tool(
        "find",
        &[
            path(kernel_tree)?,
            "-name",
            file,
            "-o",
            "-name",
            &format!("{file}.xz"),
        ],
    )?;
    let found = listing
        .lines()
        .next()
        .with_context(|| format!("kernel package without {file}"))?;
    if found.ends_with(".xz") {
        let packed = to.with_extension("ko.xz");
        install(Path::new(found), &packed)?;
        return run_tool("xz", &["-d", path(&packed)?]).map(drop);
    }
    install(Path::new(found), to)
}

fn pack(tree: &Path, archive: &Path) -> Result<()> {
    let mut command = tool("sh");
    command
        .args(["-c", "find . | cpio -o -H newc --quiet | gzip -1 >\"$0\""])
        .arg(archive)
        .current_dir(tree);
    process::run(command, PATIENCE).map(drop)
}

fn find_one(dir: &Path, prefix: &str) -> Result<PathBuf> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(prefix) {
            return Ok(entry.path());
        }
    }
    bail!("no {prefix}* in {}", dir.display());
}

fn path(path: &Path) -> Result<&str> {
    path.to_str().context("a path that is not UTF-8")
}
