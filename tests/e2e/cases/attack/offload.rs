//! virtio-net headers that ask for what cannot be done, on a port that takes offloads.

use anyhow::{ensure, Result};
use ovs_vhost::datapath::Offload;
use ovs_vhost::model::Virtqueue;
use ovs_vhost::virtio::features::*;
use ovs_vhost::virtio::net_hdr::{GSO_TCPV4, GSO_TCPV6, NEEDS_CSUM};

use super::super::world::PATIENCE;
use super::arena::Arena;
use super::guest::{frame, BARE};
use super::layout::Layout;
use crate::wait;

const WITH_OFFLOADS: Features = BARE
    .with(VIRTIO_NET_F_CSUM)
    .with(VIRTIO_NET_F_HOST_TSO4)
    .with(VIRTIO_NET_F_HOST_TSO6);
const NONE: Offload = Offload::NONE;
const CUT: Offload = Offload {
    flags: NEEDS_CSUM,
    gso_type: GSO_TCPV4,
    hdr_len: 54,
    gso_size: 1000,
    csum_start: 34,
    csum_offset: 16,
};

/// What is asked of a frame that is neither TCP nor UDP; each costs the frame.
#[rustfmt::skip] // one row a line
const LIES: &[(&str, Offload)] = &[
    ("a checksum far beyond the frame (CVE-2024-11614)", Offload { flags: NEEDS_CSUM, csum_start: 0xfff0, ..NONE }),
    ("a checksum that wraps", Offload { flags: NEEDS_CSUM, csum_start: 0xffff, csum_offset: 0xffff, ..NONE }),
    ("a checksum at the end of the frame", Offload { flags: NEEDS_CSUM, csum_start: 59, csum_offset: 0, ..NONE }),
    ("segments of nothing", Offload { gso_size: 0, ..CUT }),
    ("segments of next to nothing", Offload { gso_size: 1, ..CUT }),
    ("segments without a checksum", Offload { flags: 0, ..CUT }),
    ("segments of what is no TCP", CUT),
    ("segments of what is no TCP over IPv6", Offload { gso_type: GSO_TCPV6, ..CUT }),
    ("headers longer than the frame", Offload { hdr_len: 0xffff, ..CUT }),
    ("segments of a kind that was not negotiated", Offload { gso_type: 3, ..CUT }),
    ("segments of a kind that nobody knows", Offload { gso_type: 0x7f, ..CUT }),
];

const COUNTER: &str = "ovs_vhost_rx_invalid_offload_drops";

/// Each lie costs the frame it stands before, and is counted.
pub fn lies<D: Virtqueue>(arena: &mut Arena, layout: &Layout<D>) -> Result<()> {
    for (name, lie) in LIES {
        arena.play(&format!("{name}, {}", layout.name), |arena| {
            let (mut guest, _wire) = arena.guest::<D>(layout.size, WITH_OFFLOADS | layout.feature)?;
            guest.echo()?;
            let before = arena.counter(COUNTER)?;
            ensure!(guest.tx.send_with(*lie, &frame(38)[..60]), "no room");
            guest.tx.driver.publish();
            wait::until_true("it to be counted", PATIENCE, || {
                Ok(arena.counter(COUNTER)? == before + 1)
            })?;
            guest.echo()?;
            guest.check_canaries()
        })?;
    }
    Ok(())
}
