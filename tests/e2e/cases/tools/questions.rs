//! What tools ask and do, in their own words. PORT, PATH and TYPE stand for a port of each type, one after the other; RUN
//! for the switch's run directory.

use super::record::Stage;

/// What of an answer must be equal.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Compare {
    /// Everything.
    Exactly,
    /// Everything but numbers, and in this order.
    InOrder,
    /// Everything but numbers that are not part of a name.
    ButNumbers,
    /// Nothing: there the stock ports fail.
    Nothing,
}

/// A question.
pub struct Question {
    pub when: &'static [Stage],
    pub compare: Compare,
    pub command: &'static str,
    /// What the answer of a switch with the plugin contains at all times, so that two useless answers are not equal.
    pub says: &'static str,
}

const fn ask(
    when: &'static [Stage],
    compare: Compare,
    command: &'static str,
    says: &'static str,
) -> Question {
    Question {
        when,
        compare,
        command,
        says,
    }
}

const BOTH: &[Stage] = &[Stage::Added, Stage::Connected];
const CONNECTED: &[Stage] = &[Stage::Connected];
const ALWAYS: &[Stage] = &[
    Stage::Added,
    Stage::Connected,
    Stage::Down,
    Stage::Up,
    Stage::Changed,
    Stage::OutOfRange,
];
/// The stock server port does not come back if its socket's file is still there.
const AGAIN: &[Stage] = &[Stage::AddedAgain];

/// os-vif plugs a port: bridge, port, identity, type and MTU in one transaction.
pub const ADD: &str = "ovs-vsctl --timeout=120 --oneline --format=json -- --may-exist add-br br-int \
    -- set Bridge br-int datapath_type=netdev -- --may-exist add-port br-int PORT -- set Interface PORT \
    external_ids:iface-id=5f1c1f70-96f3-4d3b-8a60-2f4f9fd0c1aa external_ids:iface-status=active \
    external_ids:attached-mac=fa:16:3e:12:34:56 external_ids:vm-uuid=0a1b2c3d-96f3-4d3b-8a60-2f4f9fd0c1bb type=TYPE \
    OPTIONS -- set Interface PORT mtu_request=1500";

/// And unplugs it.
const DELETE: &str = "ovs-vsctl --timeout=120 --oneline --format=json -- --if-exists del-port br-int PORT";

/// What is done to each port on the way to a stage.
pub const CHANGES: &[(Stage, &[&str])] = &[
    (Stage::Down, &["ovs-ofctl mod-port br-int PORT down"]),
    (Stage::Up, &["ovs-appctl netdev-dpdk/set-admin-state PORT up"]),
    (
        Stage::Changed,
        &[
            "ovs-vsctl set Open_vSwitch . other_config:pmd-cpu-mask=0x3",
            "ovs-vsctl set Interface PORT mtu_request=2000",
            "ovs-vsctl set Interface PORT options:tx-retries-max=32",
            "ovs-vsctl set Interface PORT mac=\"02:00:00:00:00:02\"",
            "ovs-vsctl set Interface PORT other_config:pmd-rxq-affinity=0:1 other_config:tx-steering=hash",
        ],
    ),
    (
        Stage::OutOfRange,
        &[
            "ovs-vsctl set Interface PORT mtu_request=67",
            "ovs-vsctl set Interface PORT mtu_request=9703",
            "ovs-vsctl set Interface PORT options:tx-retries-max=33",
            "ovs-vsctl set Interface PORT options:n_rxq=4",
        ],
    ),
    (Stage::AddedAgain, &[DELETE, ADD]),
];

use Compare::{ButNumbers, Exactly, InOrder, Nothing};

/// os-vif: is there such a column, and what became of the port; and the latter over the database's own protocol.
pub static OS_VIF: &[Question] = &[
    ask(BOTH, Exactly, "ovs-vsctl --timeout=120 --oneline --format=json -- --columns=mtu_request list Interface", "mtu_request: 1500"),
    ask(ALWAYS, Exactly, "ovs-vsctl --timeout=120 --oneline --format=json -- list-ports br-int", "vhu4a6b3c1f-2d\\nvhu9e8d7c6b-5a"),
    ask(&[Stage::Added], Exactly, "ovs-vsctl --timeout=120 --oneline --format=json -- --columns=name,type,options,mtu_request,external_ids,ofport,error list Interface PORT", "external_ids: iface-id=UUID"),
    ask(&[Stage::Added], Exactly, "ovsdb-client transact unix:RUN/db.sock [\"Open_vSwitch\",{\"op\":\"select\",\"table\":\"Interface\",\"where\":[[\"name\",\"==\",\"PORT\"]],\"columns\":[\"name\",\"type\",\"options\",\"ofport\",\"error\"]}]", "error: []"),
    ask(AGAIN, Nothing, "ovs-vsctl --timeout=120 --oneline --format=json -- --columns=name,ofport,error list Interface PORT", "error: []"),
    ask(AGAIN, Nothing, "ovs-appctl dpctl/show", "vhu4a6b3c1f-2d dpdkvhostuser: configured_rx_queues=1"),
];

/// libvirt: whose socket is this, and what a domain's interface has counted.
pub static LIBVIRT: &[Question] = &[
    ask(BOTH, Exactly, "ovs-vsctl --timeout=5 --no-headings --columns=name find Interface options:vhost-server-path=PATH", ""),
    ask(BOTH, Exactly, "ovs-vsctl --timeout=5 get Interface PORT name", "PORT"),
    ask(BOTH, Exactly, "ovs-vsctl --timeout=5 --if-exists --format=list --data=json --no-headings --columns=statistics list Interface PORT", "=0"),
];

/// Neutron: what the switch can do, and what became of a port.
pub static NEUTRON: &[Question] = &[
    ask(ALWAYS, Exactly, "ovs-vsctl --timeout=10 --oneline --format=json -- --columns=datapath_types,iface_types list Open_vSwitch .", "iface_types: dpdkvhostuser\niface_types: dpdkvhostuserclient"),
    ask(BOTH, Exactly, "ovs-vsctl --timeout=10 --oneline --format=json -- --columns=name,external_ids,ofport list Interface PORT", "ofport: "),
    ask(ALWAYS, Exactly, "ovs-vsctl --timeout=10 --oneline --format=json -- --columns=ofport,error,admin_state,link_state list Interface PORT", "error: []"),
];

/// openstack-network-exporter: columns of the database, and three of vswitchd's reports.
pub static NETWORK_EXPORTER: &[Question] = &[
    ask(BOTH, Exactly, "ovs-vsctl --format=json --columns=name,type,admin_state,link_state,link_resets,link_speed,mtu,statistics list Interface PORT", "statistics: ovs_tx_retries=0"),
    ask(BOTH, ButNumbers, "ovs-appctl dpif-netdev/pmd-rxq-show", "queue-id: N"),
    ask(BOTH, ButNumbers, "ovs-appctl dpif-netdev/pmd-perf-show", "vhost"),
    ask(BOTH, Exactly, "ovs-appctl coverage/read-counter vhost_tx_contention", "0"),
];

/// collectd's ovs_stats.
pub static COLLECTD: &[Question] = &[
    ask(BOTH, Exactly, "ovsdb-client transact unix:RUN/db.sock [\"Open_vSwitch\",{\"op\":\"select\",\"table\":\"Interface\",\"where\":[[\"name\",\"==\",\"PORT\"]],\"columns\":[\"_uuid\",\"name\",\"external_ids\",\"statistics\"]}]", "statistics: ovs_tx_failure_drops=0"),
];

/// tripleo-validations: counters whose growth it judges.
pub static TRIPLEO: &[Question] = &[
    ask(
        BOTH,
        Exactly,
        "ovs-vsctl get Interface PORT statistics:ovs_tx_failure_drops",
        "0",
    ),
    ask(
        BOTH,
        Exactly,
        "ovs-vsctl get Interface PORT statistics:ovs_tx_mtu_exceeded_drops",
        "0",
    ),
    ask(
        BOTH,
        Exactly,
        "ovs-vsctl get Interface PORT statistics:ovs_rx_qos_drops",
        "0",
    ),
    ask(
        BOTH,
        Exactly,
        "ovs-vsctl get Interface PORT statistics:ovs_tx_qos_drops",
        "0",
    ),
    ask(
        BOTH,
        Exactly,
        "ovs-vsctl get Interface PORT statistics:ovs_tx_retries",
        "0",
    ),
];

/// sos: what of its report depends on who provides the ports.
pub static SOS: &[Question] = &[
    ask(
        BOTH,
        Exactly,
        "ovs-vsctl -t 5 get Open_vSwitch . other_config:dpdk-init",
        "\"true\"",
    ),
    ask(
        BOTH,
        ButNumbers,
        "ovs-vsctl -t 5 list Open_vSwitch",
        "dpdk_initialized: true",
    ),
    ask(
        BOTH,
        Exactly,
        "ovs-vsctl -t 5 list interface",
        "dpdkvhostuserclient",
    ),
    ask(BOTH, Exactly, "ovs-vsctl -t 5 list datapath", ""),
    ask(BOTH, Exactly, "ovs-vsctl -t 5 show", "type: dpdkvhostuserclient"),
    ask(
        BOTH,
        Exactly,
        "ovs-vsctl -t 5 list-ifaces br-int",
        "vhu9e8d7c6b-5a",
    ),
    ask(
        BOTH,
        ButNumbers,
        "ovs-appctl dpif-netdev/pmd-rxq-show -secs 5",
        "queue-id: N",
    ),
    ask(
        BOTH,
        ButNumbers,
        "ovs-appctl dpif-netdev/pmd-stats-show",
        "main thread:",
    ),
    ask(
        BOTH,
        Exactly,
        "ovs-appctl dpif-netdev/subtable-lookup-prio-get",
        "generic",
    ),
    ask(
        BOTH,
        Exactly,
        "ovs-appctl dpif-netdev/dpif-impl-get",
        "dpif_scalar",
    ),
    ask(
        BOTH,
        Exactly,
        "ovs-appctl dpif-netdev/miniflow-parser-get",
        "scalar",
    ),
    ask(BOTH, Exactly, "ovs-appctl dpdk/lcore-list", "lcore"),
    ask(BOTH, Exactly, "ovs-appctl dpctl/dump-dps", "netdev@ovs-netdev"),
    ask(
        BOTH,
        Exactly,
        "ovs-appctl dpctl/show -s netdev@ovs-netdev",
        "vhu9e8d7c6b-5a",
    ),
    ask(
        BOTH,
        ButNumbers,
        "ovs-appctl netdev-dpdk/get-mempool-info PORT",
        "",
    ),
    ask(
        BOTH,
        Exactly,
        "ovs-appctl qos/show PORT",
        "QoS not configured on PORT",
    ),
    ask(BOTH, Exactly, "ovs-appctl fdb/show br-int", "port"),
    ask(BOTH, Exactly, "ovs-vsctl get Interface PORT options", ""),
    ask(BOTH, Exactly, "ovs-ofctl show br-int", "vhu9e8d7c6b-5a"),
    ask(BOTH, Exactly, "ovs-ofctl dump-ports br-int", "port 2: rx pkts=0"),
    ask(
        BOTH,
        Exactly,
        "ovs-ofctl dump-ports-desc br-int",
        "vhu9e8d7c6b-5a",
    ),
    ask(BOTH, Exactly, "ovs-ofctl queue-stats br-int", ""),
];

/// Whoever reads tables as JSON: telegraf's exec, scripts of any kind.
pub static JSON: &[Question] = &[
    ask(BOTH, Exactly, "ovs-vsctl --format=json list Interface PORT", "status: mode="),
    ask(BOTH, Exactly, "ovs-vsctl --format=json --data=json --columns=name,status,statistics,ifindex,mac_in_use,link_speed,duplex list Interface PORT", "mac_in_use: 00:00:00:00:00:00"),
];

/// A person at a terminal.
pub static OPERATOR: &[Question] = &[
    ask(ALWAYS, Exactly, "ovs-appctl dpctl/show", "configured_rx_queues=1"),
    ask(ALWAYS, Exactly, "ovs-vsctl --columns=admin_state,link_state,mtu,mtu_request,options,other_config,error list Interface PORT", "admin_state: "),
    ask(ALWAYS, Exactly, "ovs-ofctl dump-ports-desc br-int PORT", "PORT"),
    ask(&[Stage::Changed], Exactly, "ovs-vsctl --columns=mac,mac_in_use,ifindex,link_speed list Interface PORT", "ifindex: "),
    ask(CONNECTED, InOrder, "ovs-ofctl -O OpenFlow14 dump-ports br-int PORT", "rx_q0_good_packets"),
    ask(&[Stage::Changed, Stage::OutOfRange], Exactly, "ovs-appctl dpif-netdev/pmd-rxq-show", "isolated: true"),
    ask(&[Stage::Changed, Stage::OutOfRange], Exactly, "log", ""),
];

/// All questions.
pub fn all() -> impl Iterator<Item = &'static Question> {
    let tools = [
        OS_VIF,
        LIBVIRT,
        NEUTRON,
        NETWORK_EXPORTER,
        COLLECTD,
        TRIPLEO,
        SOS,
        JSON,
        OPERATOR,
    ];
    tools.into_iter().flatten()
}
