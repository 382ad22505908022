//! What users set, made typed: `Interface.options`, and what `other_config` says for ports that say nothing themselves.
//!
//! A bad value never takes a port away (a cloud's port must exist before its VM does); it leaves the
//! default in force and a [`Complaint`] that names the option, its value and what is allowed.

use std::fmt;
use std::ops::RangeInclusive;
use std::path::PathBuf;

use crate::qos::KiloPackets;

use super::address::MAX_PATH;
use super::offer::Switches;
use super::pins::Pins;
use super::protection::{self, Protection};

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
/// Thousands of packets, as many as Open vSwitch's own columns can say.
const KPKTS_RANGE: RangeInclusive<u32> = 0..=u32::MAX;

/// A port's options, valid.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Options {
    /// The front-end's socket (client mode). None: nothing usable was given.
    pub server_path: Option<PathBuf>,
    /// Attempts to send what did not fit, after a send that made some progress.
    pub tx_retries: u32,
    /// Packets that the guest is sent at most.
    pub egress: KiloPackets,
    /// What the port is to have of what the operator switches on for all.
    pub switches: Switches,
    /// What it offers at most.
    pub pins: Pins,
    /// Its socket's file (server mode).
    pub protection: Protection,
    /// The users whose front-ends are let in (server mode). None: whoever may connect.
    pub allowed_users: Option<Vec<u32>>,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            server_path: None,
            tx_retries: TX_RETRIES_DEFAULT,
            egress: KiloPackets::default(),
            switches: Switches::default(),
            pins: Pins::default(),
            protection: Protection::default(),
            allowed_users: None,
        }
    }
}

/// What options are read against.
#[derive(Debug, Default)]
pub(super) struct Defaults {
    /// Those of a port that says nothing.
    pub options: Options,
    /// Why no port can have post-copy here, if so.
    pub no_postcopy: Option<String>,
}

/// An option that was not taken as given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Complaint(String);

impl fmt::Display for Complaint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One option.
struct Row {
    key: &'static str,
    /// The ports that have it.
    modes: &'static [Mode],
    /// `other_config` may have it too, for all of them.
    global: bool,
    /// Takes its value, or says what is wrong with it and what holds instead.
    take: fn(&mut Options, &str, &Defaults) -> Result<(), String>,
}

const BOTH: &[Mode] = &[Mode::Server, Mode::Client];
const CLIENT: &[Mode] = &[Mode::Client];
const SERVER: &[Mode] = &[Mode::Server];

const fn row(
    key: &'static str,
    modes: &'static [Mode],
    take: fn(&mut Options, &str, &Defaults) -> Result<(), String>,
) -> Row {
    Row {
        key,
        modes,
        global: false,
        take,
    }
}

const TABLE: &[Row] = &[
    row("tx-retries-max", BOTH, |options, text, _| {
        number(&mut options.tx_retries, text, TX_RETRIES_RANGE)
    }),
    row("vhost-egress-kpkts-rate", BOTH, |options, text, _| {
        number(&mut options.egress.rate, text, KPKTS_RANGE)
    }),
    row("vhost-egress-kpkts-burst", BOTH, |options, text, _| {
        number(&mut options.egress.burst, text, KPKTS_RANGE)
    }),
    row("vhost-features", BOTH, |options, text, _| {
        options.pins.limit(text)
    }),
    row("vhost-disable-features", BOTH, |options, text, _| {
        options.pins.disable(text)
    }),
    row("vhost-tso", CLIENT, tso),
    row("vhost-iommu", CLIENT, iommu),
    row("vhost-postcopy", CLIENT, postcopy),
    Row {
        global: true,
        ..row("vhost-sock-owner", SERVER, |options, text, _| {
            put(
                &mut options.protection.owner,
                protection::user(text),
                "the default",
            )
        })
    },
    Row {
        global: true,
        ..row("vhost-sock-group", SERVER, |options, text, _| {
            put(
                &mut options.protection.group,
                protection::group(text),
                "the default",
            )
        })
    },
    Row {
        global: true,
        ..row("vhost-sock-mode", SERVER, |options, text, _| {
            put(
                &mut options.protection.mode,
                protection::mode(text),
                "the default",
            )
        })
    },
    Row {
        global: true,
        ..row("vhost-allowed-uids", SERVER, allowed_users)
    },
];

impl Options {
    /// Reads `Interface.options`. Keys it does not know are left to whoever set them. May take as long as a user's name
    /// takes to be looked up.
    pub(super) fn parse(
        mode: Mode,
        given: &[(&str, &str)],
        defaults: &Defaults,
    ) -> (Options, Vec<Complaint>) {
        let mut options = defaults.options.clone();
        let mut complaints = Vec::new();
        for (row, text) in TABLE.iter().filter_map(|row| Some((row, value(given, row.key)?))) {
            let taken = match row.modes.contains(&mode) {
                true => (row.take)(&mut options, text, defaults),
                false => Err(format!("is of no effect on a {} port", mode.name())),
            };
            complaints.extend(
                taken
                    .err()
                    .map(|wrong| complaint("options", row.key, text, &wrong)),
            );
        }
        if mode == Mode::Client {
            match client_path(value(given, "vhost-server-path").unwrap_or("")) {
                Ok(path) => options.server_path = Some(path),
                Err(complaint) => complaints.push(complaint),
            }
        }
        (options, complaints)
    }
}

impl Defaults {
    /// Reads `other_config`, where it has what ports may say for themselves.
    pub(super) fn parse(
        switches: Switches,
        no_postcopy: Option<String>,
        other_config: &[(&str, &str)],
    ) -> (Defaults, Vec<Complaint>) {
        let mut options = Options {
            switches,
            ..Options::default()
        };
        let built_in = Defaults::default();
        let mut complaints = Vec::new();
        for row in TABLE.iter().filter(|row| row.global) {
            let Some(text) = value(other_config, row.key) else {
                continue;
            };
            if let Err(wrong) = (row.take)(&mut options, text, &built_in) {
                complaints.push(complaint("other_config", row.key, text, &wrong));
            }
        }
        let defaults = Defaults { options, no_postcopy };
        (defaults, complaints)
    }
}

/// What is given for a key.
pub(super) fn value<'a>(given: &[(&str, &'a str)], key: &str) -> Option<&'a str> {
    given.iter().find(|(k, _)| *k == key).map(|(_, v)| *v)
}

fn complaint(column: &str, key: &str, text: &str, wrong: &str) -> Complaint {
    Complaint(format!("{column}:{key}='{text}' {wrong}"))
}

fn put<T>(place: &mut Option<T>, found: Result<T, String>, instead: &str) -> Result<(), String> {
    *place = Some(found.map_err(|wrong| format!("{wrong}; using {instead}"))?);
    Ok(())
}

/// A whole number of a range; if it is none, what is in its place stays.
fn number(place: &mut u32, text: &str, range: RangeInclusive<u32>) -> Result<(), String> {
    let found = text.parse().ok().filter(|number| range.contains(number));
    let (least, most) = range.into_inner();
    *place = found.ok_or_else(|| format!("is not a whole number from {least} to {most}; using {place}"))?;
    Ok(())
}

fn flag(text: &str) -> Result<bool, String> {
    match text {
        "true" => Ok(true),
        "false" => Ok(false),
        _ => Err("is neither true nor false; using what other_config says".into()),
    }
}

/// Packets come from Open vSwitch in another form then, which it decides once for all ports.
fn tso(options: &mut Options, text: &str, defaults: &Defaults) -> Result<(), String> {
    let wanted = flag(text)?;
    if wanted && !defaults.options.switches.tso {
        return Err("takes other_config:userspace-tso-enable=true, read at start; using false".into());
    }
    options.switches.tso = wanted;
    Ok(())
}

fn iommu(options: &mut Options, text: &str, _: &Defaults) -> Result<(), String> {
    options.switches.iommu = flag(text)?;
    Ok(())
}

fn postcopy(options: &mut Options, text: &str, defaults: &Defaults) -> Result<(), String> {
    let wanted = flag(text)?;
    if let Some(obstacle) = defaults.no_postcopy.as_ref().filter(|_| wanted) {
        return Err(format!("is not possible here: {obstacle}; using false"));
    }
    options.switches.postcopy = wanted;
    Ok(())
}

/// A list that cannot be read lets nobody in who is not in it: of all values the safe one.
fn allowed_users(options: &mut Options, text: &str, _: &Defaults) -> Result<(), String> {
    let (users, result) = protection::users(text);
    options.allowed_users = Some(users);
    result.map_err(|wrong| format!("is not a list of users: {wrong}; letting in only the others"))
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

#[cfg(test)]
mod tests {
    use super::*;

    fn client(given: &[(&str, &str)]) -> (Options, Vec<String>) {
        let (options, complaints) = Options::parse(Mode::Client, given, &Defaults::default());
        (options, complaints.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn a_good_client_configuration_is_taken_without_complaint() {
        let (options, complaints) = client(&[("vhost-server-path", "/tmp/s"), ("tx-retries-max", "32")]);
        assert_eq!(
            options,
            Options {
                server_path: Some("/tmp/s".into()),
                tx_retries: 32,
                ..Options::default()
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
    fn packets_are_limited_in_thousands_and_a_bad_number_limits_none() {
        let given = |rate, burst| {
            let keys = ["vhost-egress-kpkts-rate", "vhost-egress-kpkts-burst"];
            client(&[("vhost-server-path", "/s"), (keys[0], rate), (keys[1], burst)])
        };
        let (options, complaints) = given("4294967295", "0");
        let most = KiloPackets {
            rate: u32::MAX,
            burst: 0,
        };
        assert_eq!((options.egress, complaints.len()), (most, 0));
        let (options, complaints) = given("4294967296", "1.5");
        assert_eq!(options.egress, KiloPackets::default());
        assert_eq!(
            complaints,
            [
                "options:vhost-egress-kpkts-rate='4294967296' is not a whole number from 0 to 4294967295; using 0",
                "options:vhost-egress-kpkts-burst='1.5' is not a whole number from 0 to 4294967295; using 0",
            ]
        );
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
        let (options, complaints) = Options::parse(
            Mode::Server,
            &[("tx-retries-max", "0"), ("n_rxq", "4")],
            &Defaults::default(),
        );
        assert_eq!((options.tx_retries, complaints.len()), (0, 0));
    }

    /// What is wrong with options beside a good path.
    fn wrong(mode: Mode, defaults: &Defaults, given: &[(&str, &str)]) -> (Options, Vec<String>) {
        let given = [&[("vhost-server-path", "/s")], given].concat();
        let (options, complaints) = Options::parse(mode, &given, defaults);
        (options, complaints.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn a_port_has_its_own_switches_and_else_those_of_all() {
        let all = |switches| Defaults::parse(switches, None, &[]).0;
        let on = Switches {
            tso: true,
            iommu: true,
            postcopy: true,
        };
        let off = Switches::default();
        let keys = ["vhost-tso", "vhost-iommu", "vhost-postcopy"];
        assert_eq!(wrong(Mode::Client, &all(on), &[]).0.switches, on);
        assert_eq!(
            wrong(Mode::Client, &all(on), &keys.map(|key| (key, "false"))),
            wrong(Mode::Client, &all(off), &[]),
        );
        let (options, complaints) = wrong(Mode::Client, &all(off), &keys.map(|key| (key, "true")));
        assert_eq!(options.switches, Switches { tso: false, ..on });
        let [complaint] = &complaints[..] else {
            panic!("{complaints:?}");
        };
        assert!(complaint.starts_with("options:vhost-tso='true' takes other_config:userspace-tso-enable"));
        let (options, complaints) = wrong(Mode::Client, &all(on), &keys.map(|key| (key, "yes")));
        assert_eq!((options.switches, complaints.len()), (on, 3));
    }

    #[test]
    fn post_copy_that_is_impossible_is_refused_with_the_reason() {
        let defaults = Defaults::parse(Switches::default(), Some("no pages".into()), &[]).0;
        let (options, complaints) = wrong(Mode::Client, &defaults, &[("vhost-postcopy", "true")]);
        assert!(!options.switches.postcopy);
        let expected = "options:vhost-postcopy='true' is not possible here: no pages; using false";
        assert_eq!(complaints, [expected]);
    }

    #[test]
    fn a_socket_is_protected_as_its_port_says_and_else_as_all_are() {
        let other_config = [
            ("vhost-sock-owner", "107"),
            ("vhost-sock-mode", "0660"),
            ("vhost-allowed-uids", "107"),
        ];
        let (defaults, complaints) = Defaults::parse(Switches::default(), None, &other_config);
        assert_eq!(complaints, []);
        let given = [("vhost-sock-group", "root"), ("vhost-sock-mode", "600")];
        let (options, complaints) = wrong(Mode::Server, &defaults, &given);
        let protection = Protection {
            owner: Some(107),
            group: Some(0),
            mode: Some(0o600),
        };
        assert_eq!((options.protection, complaints.len()), (protection, 0));
        assert_eq!(options.allowed_users, Some(vec![107]));
    }

    #[test]
    fn a_bad_protection_leaves_the_default_and_a_bad_list_lets_nobody_in() {
        let bad = [
            ("vhost-sock-owner", "nobody-knows"),
            ("vhost-sock-mode", "rw"),
            ("vhost-allowed-uids", "nobody-knows"),
        ];
        let (defaults, complaints) = Defaults::parse(Switches::default(), None, &bad);
        assert_eq!(defaults.options.protection, Protection::default());
        assert_eq!(defaults.options.allowed_users, Some(vec![]));
        let complaints: Vec<String> = complaints.iter().map(ToString::to_string).collect();
        assert_eq!(complaints.len(), 3);
        assert_eq!(
            complaints[0],
            "other_config:vhost-sock-owner='nobody-knows' is no user; using the default"
        );
    }

    #[test]
    fn an_option_of_the_other_type_of_port_is_complained_of() {
        let defaults = Defaults::default();
        for (mode, key) in [
            (Mode::Server, "vhost-iommu"),
            (Mode::Client, "vhost-allowed-uids"),
        ] {
            let (options, complaints) = wrong(mode, &defaults, &[(key, "1")]);
            assert_eq!(
                (options.switches, options.allowed_users),
                (Switches::default(), None)
            );
            assert!(complaints[0].contains("is of no effect on a"), "{complaints:?}");
        }
    }
}
