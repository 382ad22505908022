//! What tools see that differs from the stock ports on purpose. docs/ports.md says the same to people.

use super::record::Stage;
use super::Difference;
use crate::sides::Side;

/// A difference that is meant.
#[derive(Debug)]
pub struct Better {
    /// Why it is better.
    pub why: &'static str,
    /// Where: a port's kind, or any where empty.
    port: &'static str,
    /// When, or always where empty.
    when: &'static [Stage],
    /// What only the stock ports say; `*` stands for anything.
    stock: &'static [&'static str],
    /// What only the plugin's say.
    plugin: &'static [&'static str],
}

/// The line of the list that speaks of `difference`.
pub fn excuse(difference: &Difference) -> Option<&'static Better> {
    LIST.iter().find(|better| {
        let items = match difference.side {
            Side::Stock => better.stock,
            Side::Plugin => better.plugin,
        };
        let here = better.port.is_empty() || difference.port.is_empty() || better.port == difference.port;
        let now = better.when.is_empty() || better.when.contains(&difference.stage);
        here && now && items.iter().any(|pattern| matches(pattern, difference.item))
    })
}

/// Whether `text` is what `pattern` says.
fn matches(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = text.strip_prefix(first) else {
        return false;
    };
    let mut ends = rest.is_empty();
    for part in parts {
        let Some(at) = (if part.is_empty() {
            Some(rest.len())
        } else {
            rest.find(part)
        }) else {
            return false;
        };
        rest = &rest[at + part.len()..];
        ends = rest.is_empty();
    }
    ends
}

/// The whole list.
pub const LIST: &[Better] = &[
    Better {
        why: "new counters, whose names no tool takes for others",
        port: "",
        when: &[],
        stock: &[],
        plugin: &["*ovs_vhost_*=*"],
    },
    Better {
        why: "server ports count as client ports do",
        port: "server",
        when: &[],
        stock: &UNCOUNTED,
        plugin: &COUNTED,
    },
    Better {
        why: "counters are there while nobody is connected",
        port: "client",
        when: &[Stage::Added],
        stock: &UNCOUNTED,
        plugin: &COUNTED,
    },
    Better {
        why: "the MTU is in force at once, not with the first guest",
        port: "",
        when: &[Stage::Added],
        stock: &["*mtu: 0", "*mtu=0"],
        plugin: &["*mtu: 1500", "*mtu=1500"],
    },
    Better {
        why: "server ports take options, too",
        port: "",
        when: &[Stage::Changed, Stage::OutOfRange],
        stock: &["WARN vhu4a6b3c1f-2d: arguments provided to device that is not configurable"],
        plugin: &["INFO Max Tx retries for vhost device 'vhu4a6b3c1f-2d' set to *"],
    },
    Better {
        why: "an option that is out of range is said to be",
        port: "",
        when: &[Stage::OutOfRange],
        stock: &[],
        plugin: &[
            "WARN port 'vhu*': options:tx-retries-max='33' is not a whole number from 0 to 32; using 8",
        ],
    },
];

/// How it looks where nothing is counted.
const UNCOUNTED: [&str; 5] = [
    "port *: rx pkts=?",
    "tx pkts=?",
    "bytes=?",
    "drop=?",
    ", could not retrieve stats*",
];

/// And where it is.
const COUNTED: [&str; 12] = [
    "*rx_*=*",
    "*tx_*=*",
    "port *: rx pkts=*",
    "tx pkts=*",
    "*bytes=*",
    "drop=*",
    "rx rfc2819 *",
    "tx rfc2819 *",
    "*_packets=*",
    "RX *",
    "TX *",
    "collisions:?",
];
