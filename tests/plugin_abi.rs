//! What a built plugin shows to the process that loads it: one symbol, and no library that the process
//! has already.
//!
//! The plugin is `$OVS_VHOST_PLUGIN`, or the one in `target/release`; without one there is nothing to
//! look at, and the tests say so.

use std::env;
use std::fs;
use std::path::PathBuf;

use object::elf;
use object::read::elf::{Dyn, ElfFile64, FileHeader};
use object::{Endianness, Object, ObjectSymbol};

/// The plugin's path and its bytes.
fn plugin() -> Option<(PathBuf, Vec<u8>)> {
    let default = || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("target/release/libovs_vhost.so");
    let named = env::var_os("OVS_VHOST_PLUGIN").map(PathBuf::from);
    let path = named.clone().unwrap_or_else(default);
    match fs::read(&path) {
        Ok(bytes) => Some((path, bytes)),
        Err(error) if named.is_none() => {
            println!("SKIP: no plugin to look at, {}: {error}", path.display());
            None
        }
        Err(error) => panic!("OVS_VHOST_PLUGIN={}: {error}", path.display()),
    }
}

fn parse(bytes: &[u8]) -> ElfFile64<'_, Endianness> {
    ElfFile64::parse(bytes).expect("an ELF file")
}

/// The values in the dynamic section under a tag, each as a number and, where it is one, as a string.
fn dynamic(file: &ElfFile64<'_, Endianness>, tag: u32) -> Vec<(u64, String)> {
    let (header, endian, data) = (file.elf_header(), file.endian(), file.data());
    let sections = header.sections(endian, data).expect("section headers");
    let (entries, link) = sections
        .dynamic(endian, data)
        .expect("a readable file")
        .expect("a dynamic section");
    let strings = sections.strings(endian, data, link).expect("dynamic strings");
    let tagged = entries.iter().filter(|entry| entry.tag32(endian) == Some(tag));
    let text = |entry: &elf::Dyn64<Endianness>| {
        entry
            .string(endian, strings)
            .map(|s| String::from_utf8_lossy(s).into_owned())
            .unwrap_or_default()
    };
    tagged.map(|entry| (entry.d_val(endian), text(entry))).collect()
}

#[test]
fn the_plugin_exports_its_entry_point_and_nothing_else() {
    let Some((path, bytes)) = plugin() else { return };
    let file = parse(&bytes);
    let exported: Vec<&str> = file
        .dynamic_symbols()
        .filter(|symbol| symbol.is_definition())
        .map(|symbol| symbol.name().expect("a name"))
        .collect();
    assert_eq!(exported, ["ovs_netdev_plugin"], "in {}", path.display());
}

#[test]
fn the_plugin_brings_neither_open_vswitch_nor_dpdk_along() {
    let Some((path, bytes)) = plugin() else { return };
    let needed: Vec<String> = dynamic(&parse(&bytes), elf::DT_NEEDED)
        .into_iter()
        .map(|(_, name)| name)
        .collect();
    assert!(
        needed.iter().any(|library| library.starts_with("libc.so")),
        "{needed:?}"
    );
    for library in &needed {
        let second_copy = ["librte_", "libopenvswitch", "libofproto"]
            .iter()
            .any(|l| library.starts_with(l));
        assert!(!second_copy, "{} needs {library}", path.display());
    }
}

#[test]
fn the_plugin_is_bound_whole_when_it_is_loaded_and_to_itself_first() {
    let Some((path, bytes)) = plugin() else { return };
    let flags = dynamic(&parse(&bytes), elf::DT_FLAGS)
        .iter()
        .fold(0, |all, (flags, _)| all | flags);
    let wanted = u64::from(elf::DF_SYMBOLIC | elf::DF_BIND_NOW);
    assert_eq!(flags & wanted, wanted, "in {}", path.display());
}
