//! Generates bindings to the DPDK that pkg-config finds, and links it dynamically: a second, static EAL
//! in one process would be a second state.

use std::env;
use std::error::Error;
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::Command;

/// What is bound. Everything in DPDK would be 30,000 lines, and some of it no Rust type can express.
const ITEMS: [&str; 5] = [
    "rte_eal_(init|cleanup)",
    "rte_mempool_.*",
    "rte_pktmbuf_.*",
    "rte_vhost_.*",
    "(rte_strerror|dpdk_sys_.*)",
];

/// Constants among it.
const FLAGS: &str = "RTE_VHOST_USER_.*";

/// The libraries that have it.
const LIBRARIES: [&str; 4] = ["rte_eal", "rte_mempool", "rte_mbuf", "rte_vhost"];

fn main() {
    for file in ["build.rs", "dpdk.h", "dpdk.c"] {
        println!("cargo::rerun-if-changed={file}");
    }
    for variable in ["PKG_CONFIG", "PKG_CONFIG_PATH"] {
        println!("cargo::rerun-if-env-changed={variable}");
    }
    if let Err(error) = build() {
        println!("cargo::error=no bindings to DPDK: {error}");
    }
}

fn build() -> Result<(), Box<dyn Error>> {
    let cflags = pkg_config("--cflags")?;
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?);
    bindgen::builder()
        .header("dpdk.h")
        .clang_args(&cflags)
        .allowlist_function(ITEMS.join("|"))
        .allowlist_var(FLAGS)
        .default_enum_style(bindgen::EnumVariation::NewType {
            is_bitfield: false,
            is_global: false,
        })
        .generate_comments(false)
        .generate()?
        .write_to_file(out.join("bindings.rs"))?;

    let mut cc = cc::Build::new();
    cc.file("dpdk.c")
        .warnings(true)
        .extra_warnings(true)
        .warnings_into_errors(true);
    for flag in &cflags {
        cc.flag(flag.replacen("-I", "-isystem", 1));
    }
    cc.try_compile("dpdk_sys_inline")?;

    for flag in pkg_config("--libs-only-L")? {
        println!(
            "cargo::rustc-link-search=native={}",
            flag.trim_start_matches("-L")
        );
    }
    for library in LIBRARIES {
        println!("cargo::rustc-link-lib=dylib={library}");
    }
    Ok(())
}

fn pkg_config(what: &str) -> Result<Vec<String>, Box<dyn Error>> {
    let program = env::var_os("PKG_CONFIG").unwrap_or_else(|| OsString::from("pkg-config"));
    let output = Command::new(&program).args([what, "libdpdk"]).output()?;
    if !output.status.success() {
        let why = String::from_utf8_lossy(&output.stderr);
        return Err(format!("DPDK is not installed (libdpdk-dev): {}", why.trim()).into());
    }
    Ok(String::from_utf8_lossy(&output.stdout)
        .split_whitespace()
        .map(str::to_owned)
        .collect())
}
