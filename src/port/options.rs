//! What users set, made typed: `Interface.options`, and the directory of server sockets.
//!
//! A bad value never takes a port away (a cloud's port must exist before its VM does); it leaves the
//! default in force and a [`Complaint`] that names the option, its value and what is allowed.

use std::fmt;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use super::address::MAX_PATH;

/// Which end of the socket Open vSwitch is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// `dpdkvhostuser`: Open vSwitch creates the socket, the front-end connects.
    Server,
    /// `dpdkvhostuserclient`: the front-end creates the socket, Open vSwitch connects.
    Client,
}

impl Mode {
    /// As it stands in the `status` column.
    pub fn name(self) -> &'static str {
        match self {
            Mode::Server => "server",
            Mode::Client => "client",
        }
    }
}

/// MTUs a port accepts, in bytes of Ethernet payload (the stock range).
pub const MTU_RANGE: RangeInclusive<u32> = 68..=9702;
/// `options:tx-retries-max`: attempts after a partial send.
pub const TX_RETRIES_RANGE: RangeInclusive<u32> = 0..=32;
const TX_RETRIES_DEFAULT: u32 = 8;

/// A port's options, valid.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Options {
    /// The front-end's socket (client mode). None: nothing usable was given.
    pub server_path: Option<PathBuf>,
    /// Attempts to send what did not fit, after a send that made some progress.
    pub tx_retries: u32,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            server_path: None,
            tx_retries: TX_RETRIES_DEFAULT,
        }
    }
}

/// An option that was not taken as given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Complaint(String);

impl fmt::Display for Complaint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Options {
    /// Reads `Interface.options`. Keys it does not know are left to whoever set them.
    pub(super) fn parse(mode: Mode, given: &[(&str, &str)]) -> (Options, Vec<Complaint>) {
        let value = |key| given.iter().find(|(k, _)| *k == key).map(|(_, v)| *v);
        let mut options = Options::default();
        let mut complaints = Vec::new();

        if let Some(text) = value("tx-retries-max") {
            match text.parse() {
                Ok(n) if TX_RETRIES_RANGE.contains(&n) => options.tx_retries = n,
                _ => complaints.push(Complaint(format!(
                    "options:tx-retries-max='{text}' is not a whole number from {} to {}; using {TX_RETRIES_DEFAULT}",
                    TX_RETRIES_RANGE.start(),
                    TX_RETRIES_RANGE.end(),
                ))),
            }
        }
        if mode == Mode::Client {
            match client_path(value("vhost-server-path").unwrap_or("")) {
                Ok(path) => options.server_path = Some(path),
                Err(complaint) => complaints.push(complaint),
            }
        }
        (options, complaints)
    }
}

fn client_path(text: &str) -> Result<PathBuf, Complaint> {
    match text.len() {
        0 => Err(Complaint(
            "options:vhost-server-path is not set; the port stays disconnected until it is \
             the path of the front-end's socket"
                .into(),
        )),
        n if n > MAX_PATH => Err(Complaint(format!(
            "options:vhost-server-path='{text}' has {n} bytes; a path has at most {MAX_PATH}"
        ))),
        _ => Ok(PathBuf::from(text)),
    }
}

/// Where server sockets live, from `other_config:vhost-sock-dir`, with the line stock writes about it.
///
/// The directory is always below `rundir`, whatever the value starts with: whoever can write the
/// database must not be able to place sockets anywhere else.
pub fn socket_directory(rundir: &Path, vhost_sock_dir: Option<&str>) -> (PathBuf, log::Level, String) {
    const NAME_MAX: usize = 255;
    let base = rundir.display();
    let Some(value) = vhost_sock_dir.filter(|v| v.len() <= NAME_MAX) else {
        let line = format!("No vhost-sock-dir provided - defaulting to {base}");
        return (rundir.to_owned(), log::Level::Info, line);
    };
    if value.contains("..") {
        let line = format!(
            "vhost-user sock directory request '{base}/{value}' has invalidcharacters '..' - using {base} instead."
        );
        return (rundir.to_owned(), log::Level::Error, line);
    }
    let directory = rundir.join(value.trim_start_matches('/'));
    if directory.is_dir() {
        let line = format!("User-provided vhost-sock-dir in use: {value}");
        (directory, log::Level::Info, line)
    } else {
        let line = format!(
            "vhost-user sock directory '{}' does not exist.",
            directory.display()
        );
        (directory, log::Level::Error, line)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(given: &[(&str, &str)]) -> (Options, Vec<String>) {
        let (options, complaints) = Options::parse(Mode::Client, given);
        (options, complaints.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn a_good_client_configuration_is_taken_without_complaint() {
        let (options, complaints) = client(&[("vhost-server-path", "/tmp/s"), ("tx-retries-max", "32")]);
        assert_eq!(
            options,
            Options {
                server_path: Some("/tmp/s".into()),
                tx_retries: 32
            }
        );
        assert!(complaints.is_empty());
    }

    #[test]
    fn bad_retries_name_option_value_and_range_and_leave_the_default() {
        for bad in ["33", "-1", "many", "", "4294967296", "8.5"] {
            let (options, complaints) = client(&[("vhost-server-path", "/s"), ("tx-retries-max", bad)]);
            assert_eq!(options.tx_retries, 8);
            assert_eq!(
                complaints,
                [format!(
                    "options:tx-retries-max='{bad}' is not a whole number from 0 to 32; using 8"
                )]
            );
        }
    }

    #[test]
    fn a_missing_or_empty_path_is_named() {
        for given in [&[][..], &[("vhost-server-path", "")][..]] {
            let (options, complaints) = client(given);
            assert_eq!(options.server_path, None);
            assert!(complaints[0].starts_with("options:vhost-server-path is not set"));
        }
    }

    #[test]
    fn a_path_may_be_as_long_as_paths_can_be_and_not_one_byte_more() {
        let longest = format!("/{}", "p".repeat(4094));
        assert!(client(&[("vhost-server-path", &longest)]).1.is_empty());
        let (options, complaints) = client(&[("vhost-server-path", &format!("{longest}p"))]);
        assert_eq!(options.server_path, None);
        assert!(complaints[0].contains("has 4096 bytes; a path has at most 4095"));
    }

    #[test]
    fn a_server_port_needs_no_path_and_takes_retries() {
        let (options, complaints) = Options::parse(Mode::Server, &[("tx-retries-max", "0"), ("n_rxq", "4")]);
        assert_eq!((options.tx_retries, complaints.len()), (0, 0));
    }

    #[test]
    fn the_socket_directory_never_leaves_the_run_directory() {
        let run = std::env::temp_dir();
        let directory = |value: Option<&str>| socket_directory(&run, value).0;
        assert_eq!(directory(None), run);
        assert_eq!(directory(Some("../etc")), run);
        assert_eq!(directory(Some(&"x".repeat(256))), run);
        assert_eq!(directory(Some("/vm")), run.join("vm"));
        assert_eq!(socket_directory(&run, Some("missing")).1, log::Level::Error);
    }
}
