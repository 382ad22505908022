//! Compiles the C shim against the Open vSwitch tree that will load the plugin.
//!
//! The tree is `$OVS_TREE`, or `target/ovs` where `make build` puts it: patched, configured and built,
//! for the shim needs its private headers and its config.h. The plugin links neither Open vSwitch nor
//! DPDK: both are in the process that loads it, and a second copy would be a second state.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    #[cfg(feature = "plugin")]
    if let Err(error) = plugin::build() {
        println!("cargo::error={error}");
    }
}

#[cfg(feature = "plugin")]
mod plugin {
    use std::env;
    use std::ffi::OsString;
    use std::fs;
    use std::path::{Path, PathBuf};
    use std::process::Command;

    /// The shim's sources and headers, in `c-shim/`.
    const SOURCES: [&str; 12] = [
        "host.c",
        "netdev_class.c",
        "offload.c",
        "packet.c",
        "packet_heap.c",
        "packet_large.c",
        "packet_pool.c",
        "packet_source.c",
        "pairs.c",
        "qos.c",
        "stats.c",
        "tap.c",
    ];
    const HEADERS: [&str; 2] = ["ovs_vhost.h", "shim.h"];

    pub fn build() -> Result<(), String> {
        let manifest = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"));
        let tree = find_tree(&manifest)?;
        rerun_if_changed(&manifest.join("c-shim"), &tree)?;
        compile_shim(&manifest.join("c-shim"), &tree)?;
        // The shim's symbols are the plugin's own, whatever the process has under the same names.
        println!("cargo::rustc-cdylib-link-arg=-Wl,-Bsymbolic");
        Ok(())
    }

    fn find_tree(manifest: &Path) -> Result<PathBuf, String> {
        println!("cargo::rerun-if-env-changed=OVS_TREE");
        let tree = env::var_os("OVS_TREE").map_or_else(|| manifest.join("target/ovs"), PathBuf::from);
        // The order in which a tree comes to be: unpacked, patched, configured and built.
        let missing = [
            "lib/netdev-provider.h",
            "lib/netdev-plugin.h",
            "config.h",
            "lib/netdev-plugin-hash.h",
        ]
        .into_iter()
        .find(|file| !tree.join(file).is_file());
        match missing {
            None => Ok(tree),
            Some(file) => Err(format!(
                "no patched and built Open vSwitch in {}: it has no {file}. Run `make build`, or set OVS_TREE; \
                 the parts that need none build with --no-default-features",
                tree.display()
            )),
        }
    }

    fn rerun_if_changed(shim: &Path, tree: &Path) -> Result<(), String> {
        for file in SOURCES.iter().chain(&HEADERS) {
            println!("cargo::rerun-if-changed={}", shim.join(file).display());
        }
        for directory in ["", "lib", "include/openvswitch"] {
            let directory = tree.join(directory);
            let list = fs::read_dir(&directory).map_err(|e| format!("{}: {e}", directory.display()))?;
            let files = list.filter_map(|entry| Some(entry.ok()?.path()));
            for header in files.filter(|file| file.extension().is_some_and(|e| e == "h")) {
                println!("cargo::rerun-if-changed={}", header.display());
            }
        }
        Ok(())
    }

    fn compile_shim(shim: &Path, tree: &Path) -> Result<(), String> {
        let mut cc = cc::Build::new();
        cc.files(SOURCES.map(|file| shim.join(file)))
            .warnings(true)
            .extra_warnings(true)
            .warnings_into_errors(true)
            .flag("-fvisibility=hidden")
            // Open vSwitch's headers are written for it.
            .flag("-fno-strict-aliasing")
            .define("HAVE_CONFIG_H", None)
            .define(
                "OVS_VHOST_VERSION",
                Some(format!("\"{}\"", env!("CARGO_PKG_VERSION")).as_str()),
            );
        // Headers that are not ours are system headers: they do not pass -Wextra, and need not.
        for directory in [tree.to_owned(), tree.join("include"), tree.join("lib")] {
            cc.flag("-isystem").flag(directory);
        }
        if has_dpdk(tree)? {
            for flag in dpdk_flags()? {
                cc.flag(flag);
            }
        }
        cc.try_compile("ovs_vhost_shim")
            .map_err(|e| format!("the C shim does not compile: {e}"))
    }

    /// Whether the tree was configured with DPDK: its packets are mbufs then.
    fn has_dpdk(tree: &Path) -> Result<bool, String> {
        let config = tree.join("config.h");
        let text = fs::read_to_string(&config).map_err(|e| format!("{}: {e}", config.display()))?;
        Ok(text.lines().any(|line| line.starts_with("#define DPDK_NETDEV 1")))
    }

    fn dpdk_flags() -> Result<Vec<String>, String> {
        println!("cargo::rerun-if-env-changed=PKG_CONFIG");
        println!("cargo::rerun-if-env-changed=PKG_CONFIG_PATH");
        let program = env::var_os("PKG_CONFIG").unwrap_or_else(|| OsString::from("pkg-config"));
        let output = Command::new(&program)
            .args(["--cflags", "libdpdk"])
            .output()
            .map_err(|e| format!("cannot run {}: {e}", program.to_string_lossy()))?;
        if !output.status.success() {
            return Err(format!(
                "the Open vSwitch tree uses DPDK, but its headers are not installed (libdpdk-dev): {}",
                String::from_utf8_lossy(&output.stderr).trim()
            ));
        }
        let flags = String::from_utf8_lossy(&output.stdout).into_owned();
        Ok(flags
            .split_whitespace()
            .map(|flag| flag.replacen("-I", "-isystem", 1))
            .collect())
    }
}
