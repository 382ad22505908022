//! The table of cases. A case is a function that returns an error when its claim does
//! not hold; what it cannot run without stands in the table, so a skip always has a reason.

mod as_stock;
mod attack;
mod bad_input;
mod bad_luck;
mod bench;
mod bridged;
mod calm;
mod captured;
mod describe;
mod dpdk;
mod fault;
mod hardened;
mod hotplug;
mod inside;
mod iommu;
mod libvirt;
mod lost;
mod migration;
mod numbered;
mod offload;
mod policed;
mod qemu_killed;
mod queues;
mod run;
mod settings;
mod soak;
mod starved;
mod storm;
mod tools;
mod valgrind;
mod vm;
mod without_dpdk;
pub mod world;

use anyhow::Result;

use crate::settings::Need;
pub use run::{list, run, Ctx};

/// A row of the table.
struct Case {
    name: &'static str,
    needs: &'static [Need],
    /// Stock ports cannot do it, so there is nothing to compare the plugin's with.
    plugin_only: bool,
    run: fn(&Ctx) -> Result<()>,
}

const fn both(name: &'static str, needs: &'static [Need], run: fn(&Ctx) -> Result<()>) -> Case {
    Case {
        name,
        needs,
        plugin_only: false,
        run,
    }
}

const fn plugin(name: &'static str, needs: &'static [Need], run: fn(&Ctx) -> Result<()>) -> Case {
    Case {
        name,
        needs,
        plugin_only: true,
        run,
    }
}

/// What it takes to move a guest and see its announcement.
const MOVES: &[Need] = &[Need::Guests, Need::Capture];

const CASES: &[Case] = &[
    both("vm/server-and-client", &[Need::Guests], vm::server_and_client),
    both("vm/client-and-client", &[Need::Guests], vm::client_and_client),
    both("vm/legacy", &[Need::Guests], vm::legacy),
    both("vm/multiqueue", &[Need::Guests], vm::multiqueue),
    both("vm/eight-queue-pairs", &[Need::Guests], queues::eight_pairs),
    both("vm/mtu-9000", &[Need::Guests], vm::mtu_9000),
    both("vm/guest-reboot", &[Need::Guests], vm::guest_reboot),
    both("vm/vswitchd-killed", &[Need::Guests], vm::vswitchd_killed),
    both("vm/front-end-crash", &[Need::Guests], vm::front_end_crash),
    plugin(
        "vm/qemu-killed-under-tcp",
        &[Need::Guests],
        qemu_killed::under_tcp,
    ),
    both(
        "vm/client-path-not-there-yet",
        &[Need::Guests],
        vm::path_not_there_yet,
    ),
    both(
        "vm/port-deleted-and-added-again",
        &[Need::Guests],
        vm::port_deleted_and_added,
    ),
    both("vm/migrate-client", MOVES, migration::client),
    both("vm/migrate-server", MOVES, migration::server),
    both("vm/migrate-packed-client", MOVES, migration::packed_client),
    both("vm/migrate-packed-server", MOVES, migration::packed_server),
    both("vm/migrate-multiqueue", MOVES, migration::multiqueue),
    both("vm/migrate-announce", MOVES, migration::announce),
    both("vm/migrate-rarp", MOVES, migration::rarp),
    both("vm/migrate-postcopy", MOVES, migration::postcopy),
    plugin(
        "vm/stock-and-back",
        &[Need::Guests, Need::Hugepages],
        migration::stock_and_back,
    ),
    plugin(
        "vm/plugin-and-back",
        &[Need::Guests, Need::Hugepages],
        migration::plugin_and_back,
    ),
    plugin(
        "vm/no-dpdk-build",
        &[Need::Guests, Need::NoDpdkTree],
        without_dpdk::no_dpdk_build,
    ),
    plugin("vm/described", &[Need::Guests], describe::told_to_operators),
    plugin("vm/pinned", &[Need::Guests], settings::pinned),
    plugin(
        "vm/protected-and-far-down",
        &[Need::Guests],
        settings::protected_and_far_down,
    ),
    plugin(
        "settings/own-pools-and-locked-memory",
        &[Need::Testpmd],
        as_stock::own_pools_and_locked_memory,
    ),
    plugin(
        "settings/shared-pools-and-steered-queues",
        &[Need::Testpmd],
        as_stock::shared_pools_and_steered_queues,
    ),
    plugin(
        "settings/socket-directories",
        &[Need::Guests],
        settings::socket_directories,
    ),
    plugin("settings/another-path", &[], settings::another_path),
    plugin("vm/packed", &[Need::Guests], vm::packed),
    plugin(
        "vm/packed-vswitchd-killed",
        &[Need::Guests],
        vm::packed_vswitchd_killed,
    ),
    both("numbered/split-vswitchd-killed", &[Need::Guests], numbered::split),
    plugin(
        "numbered/packed-vswitchd-killed",
        &[Need::Guests],
        numbered::packed,
    ),
    both("vm/memory-hotplug", &[Need::Guests], hotplug::under_traffic),
    plugin("vm/no-hugepages", &[Need::Guests], without_dpdk::no_hugepages),
    plugin(
        "vm/dpdk/server-and-client",
        &[Need::Guests, Need::Hugepages],
        vm::server_and_client_dpdk,
    ),
    plugin(
        "vm/dpdk/multiqueue",
        &[Need::Guests, Need::Hugepages],
        vm::multiqueue_dpdk,
    ),
    plugin(
        "vm/dpdk/mtu-9000",
        &[Need::Guests, Need::Hugepages],
        vm::mtu_9000_dpdk,
    ),
    plugin(
        "vm/dpdk/vswitchd-killed",
        &[Need::Guests, Need::Hugepages],
        vm::vswitchd_killed_dpdk,
    ),
    plugin(
        "vm/dpdk/init-at-run-time",
        &[Need::Guests, Need::Hugepages],
        without_dpdk::dpdk_init_at_run_time,
    ),
    plugin("bench/pvp", &[Need::Testpmd, Need::Hugepages], bench::pvp),
    plugin(
        "bench/pvp-beyond-testpmd",
        &[Need::Testpmd, Need::Hugepages],
        bench::pvp_beyond,
    ),
    plugin("bench/control", &[Need::Testpmd, Need::Hugepages], bench::control),
    plugin("bench/latency", &[Need::Testpmd, Need::Hugepages], bench::latency),
    plugin(
        "dpdk/memory-cut-short",
        &[Need::Testpmd, Need::Guests],
        lost::under_traffic,
    ),
    plugin("iommu/split", &[Need::Guests], iommu::split),
    plugin("iommu/packed", &[Need::Guests], iommu::packed),
    plugin("iommu/lazy", &[Need::Guests], iommu::lazy),
    plugin("iommu/lazy-packed", &[Need::Guests], iommu::lazy_packed),
    plugin("iommu/migrate-packed", MOVES, migration::iommu_packed),
    both("offload/tso", &[Need::Guests], offload::tso),
    plugin("offload/tso-ipv6", &[Need::Guests], offload::tso_ipv6),
    plugin("offload/tso-packed", &[Need::Guests], offload::tso_packed),
    plugin("offload/to-bare", &[Need::Guests], offload::to_bare),
    plugin("offload/to-bare-ipv6", &[Need::Guests], offload::to_bare_ipv6),
    plugin(
        "offload/to-checksums-only",
        &[Need::Guests],
        offload::to_checksums_only,
    ),
    plugin(
        "offload/no-dpdk-build",
        &[Need::Guests, Need::NoDpdkTree],
        offload::no_dpdk_build,
    ),
    plugin(
        "offload/dpdk/tso",
        &[Need::Guests, Need::Hugepages],
        offload::tso_dpdk,
    ),
    plugin(
        "offload/dpdk/to-bare",
        &[Need::Guests, Need::Hugepages],
        offload::to_bare_dpdk,
    ),
    both(
        "bridged/ports-1500",
        &[Need::Guests, Need::AfXdp],
        bridged::ports_1500,
    ),
    both("bridged/ports-9000", &[Need::Guests], bridged::ports_9000),
    both("bridged/ports-1500-tso", &[Need::Guests], bridged::ports_1500_tso),
    both("bridged/ports-9000-tso", &[Need::Guests], bridged::ports_9000_tso),
    both("bridged/tunnels-1500", &[Need::Guests], bridged::tunnels_1500),
    both("bridged/tunnels-9000", &[Need::Guests], bridged::tunnels_9000),
    both(
        "bridged/tunnels-1500-tso",
        &[Need::Guests],
        bridged::tunnels_1500_tso,
    ),
    both(
        "bridged/tunnels-9000-tso",
        &[Need::Guests],
        bridged::tunnels_9000_tso,
    ),
    both(
        "dpdk/loop-client-mergeable",
        &[Need::Testpmd],
        dpdk::client_mergeable,
    ),
    both("dpdk/loop-client-plain", &[Need::Testpmd], dpdk::client_plain),
    both(
        "dpdk/loop-server-mergeable",
        &[Need::Testpmd],
        dpdk::server_mergeable,
    ),
    both("dpdk/loop-server-plain", &[Need::Testpmd], dpdk::server_plain),
    both(
        "dpdk/loop-client-packed-mergeable",
        &[Need::Testpmd],
        dpdk::client_packed_mergeable,
    ),
    both(
        "dpdk/loop-client-packed-plain",
        &[Need::Testpmd],
        dpdk::client_packed_plain,
    ),
    both(
        "dpdk/loop-server-packed-mergeable",
        &[Need::Testpmd],
        dpdk::server_packed_mergeable,
    ),
    both(
        "dpdk/loop-server-packed-plain",
        &[Need::Testpmd],
        dpdk::server_packed_plain,
    ),
    both(
        "dpdk/loop-client-in-order",
        &[Need::Testpmd],
        dpdk::client_in_order,
    ),
    both(
        "dpdk/loop-client-packed-in-order",
        &[Need::Testpmd],
        dpdk::client_packed_in_order,
    ),
    plugin("dpdk/looked-into", &[Need::Testpmd], inside::under_load),
    plugin("dpdk/policed", &[Need::Testpmd], policed::with_dpdk),
    plugin(
        "dpdk/policed-without-dpdk",
        &[Need::Testpmd],
        policed::without_dpdk,
    ),
    plugin("captured/flood", &[Need::Testpmd, Need::Tshark], captured::flood),
    plugin("captured/tso", &[Need::Guests, Need::Tshark], captured::tso),
    plugin("dpdk/kill-storm", &[Need::Testpmd], storm::kill_storm),
    plugin(
        "tools/iface-types",
        &[Need::Hugepages],
        tools::there_from_the_start,
    ),
    plugin("tools/os-vif", &[Need::Testpmd], tools::os_vif),
    plugin("tools/libvirt-lookups", &[Need::Testpmd], tools::libvirt_lookups),
    plugin("tools/neutron", &[Need::Testpmd], tools::neutron),
    plugin("tools/network-exporter", &[Need::Testpmd], tools::exporter),
    plugin("tools/collectd", &[Need::Testpmd], tools::collectd),
    plugin("tools/tripleo-validations", &[Need::Testpmd], tools::tripleo),
    plugin("tools/sos", &[Need::Testpmd], tools::sos),
    plugin("tools/json", &[Need::Testpmd], tools::json),
    plugin("tools/operator", &[Need::Testpmd], tools::operator),
    plugin("tools/better", &[Need::Testpmd], tools::better_is_seen),
    plugin(
        "libvirt/convert",
        &[Need::Guests, Need::Libvirt],
        libvirt::convert,
    ),
    plugin(
        "bad-input/paths-and-options",
        &[Need::Guests],
        bad_input::paths_and_options,
    ),
    plugin(
        "bad-input/foreign-and-stale-sockets",
        &[],
        bad_input::foreign_and_stale_sockets,
    ),
    plugin("attack/messages", &[], attack::messages),
    plugin("attack/memory", &[], attack::memory),
    plugin("attack/rings-split", &[], attack::rings_split),
    plugin("attack/rings-packed", &[], attack::rings_packed),
    plugin("attack/live-changes", &[], attack::live_changes),
    plugin("attack/iommu-split", &[], attack::iommu_split),
    plugin("attack/iommu-packed", &[], attack::iommu_packed),
    plugin("attack/exhaustion", &[], attack::exhaustion),
    plugin("starved/of-descriptors", &[], starved::of_descriptors),
    plugin("starved/of-memory", &[], starved::of_memory),
    plugin("hardened/filter", &[Need::DropIn], hardened::filter_bites),
    plugin("hardened/unprivileged", &[Need::DropIn], hardened::unprivileged),
    plugin(
        "hardened/unprivileged-dpdk",
        &[Need::DropIn, Need::Hugepages],
        hardened::unprivileged_dpdk,
    ),
    plugin("hardened/gives-up-root", &[Need::DropIn], hardened::gives_up_root),
    plugin("hardened/systemd", &[Need::Systemd], hardened::by_systemd),
    plugin(
        "calm/ports-come-and-go",
        &[Need::Testpmd, Need::Hugepages],
        calm::ports_come_and_go,
    ),
    plugin("soak/reconnect-server", &[], soak::server),
    plugin("soak/reconnect-client", &[], soak::client),
    plugin("soak/client-connects-at-once", &[], soak::connects_at_once),
    plugin("soak/bad-luck", &[Need::Testpmd], bad_luck::bad_luck),
    plugin(
        "fault/panic-costs-one-port",
        &[Need::Guests, Need::FaultPlugin],
        fault::panic_costs_one_port,
    ),
    plugin(
        "valgrind/connect-disconnect-delete",
        &[Need::Valgrind],
        valgrind::clean,
    ),
    plugin("valgrind/talk-and-delete", &[Need::Valgrind], valgrind::talk),
];
