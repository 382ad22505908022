//! Target `options`: whatever users write into the database, a port has valid options, and one complaint for each bad value.

use std::path::Path;

use super::input::Input;
use crate::port::{parse_options, socket_directory, Mode, TX_RETRIES_RANGE};

/// Keys that a port knows, and one that it does not. Those of users are left out: each would be looked up in the system.
const KEYS: [&str; 9] = [
    "tx-retries-max",
    "vhost-server-path",
    "n_rxq",
    "vhost-features",
    "vhost-disable-features",
    "vhost-tso",
    "vhost-iommu",
    "vhost-postcopy",
    "vhost-sock-mode",
];

pub(super) fn run(mut input: Input<'_>) {
    let mode = input.pick(&[Mode::Server, Mode::Client]);
    let mut texts = Vec::new();
    while !input.is_empty() && texts.len() < 8 {
        let (key, len) = (input.pick(&KEYS), input.u8());
        texts.push((key, String::from_utf8_lossy(input.bytes(len.into())).into_owned()));
    }
    let given: Vec<_> = texts.iter().map(|(key, text)| (*key, text.as_str())).collect();
    let (path, retries, complaints) = parse_options(mode, &given);
    assert!(TX_RETRIES_RANGE.contains(&retries));
    assert!(complaints.len() < KEYS.len());
    let value = |key| {
        given
            .iter()
            .find(|(known, _)| *known == key)
            .map(|(_, text)| *text)
    };
    match path {
        Some(path) => {
            assert_eq!((mode, path.to_str()), (Mode::Client, value("vhost-server-path")));
            assert!(!path.as_os_str().is_empty());
        }
        None => {
            assert!(mode == Mode::Server || complaints.iter().any(|text| text.contains("vhost-server-path")))
        }
    }
    let taken = value("tx-retries-max").and_then(|text| text.parse::<u32>().ok()) == Some(retries);
    let complained = complaints.iter().any(|text| text.contains("tx-retries-max"));
    assert!(taken || complained || value("tx-retries-max").is_none());
    let directory = value("n_rxq");
    let (below, _, line) = socket_directory(Path::new("/run/nobody"), &[], directory);
    assert!(below.starts_with("/run/nobody") && !line.is_empty());
    assert!(
        below.components().all(|part| part.as_os_str() != ".."),
        "{}",
        below.display()
    );
}
