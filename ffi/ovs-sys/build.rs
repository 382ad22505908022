//! Generates the bindings to the border header. Needs libclang, and nothing of Open vSwitch.

use std::env;
use std::path::{Path, PathBuf};

fn main() {
    let manifest = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it"));
    let header = manifest.join("../../c-shim/ovs_vhost.h");
    println!("cargo::rerun-if-changed={}", header.display());
    match generate(&header, &out.join("bindings.rs")) {
        Ok(()) => {}
        Err(error) => println!(
            "cargo::error=cannot generate bindings to {}: {error}",
            header.display()
        ),
    }
}

fn generate(header: &Path, bindings: &Path) -> Result<(), Box<dyn std::error::Error>> {
    bindgen::builder()
        .header(header.display().to_string())
        .allowlist_item("ovsv_.*|OVSV_MAX_FRAME")
        // A value from C that is none of the enumerators must not be undefined behaviour.
        .default_enum_style(bindgen::EnumVariation::NewType {
            is_bitfield: false,
            is_global: false,
        })
        .derive_default(true)
        .generate_comments(false)
        .generate()?
        .write_to_file(bindings)?;
    Ok(())
}
