//! What rings do with offloads, both layouts, against frames and checksums made here in the plainest way.

mod hostile;
mod naive;
mod out_of_guest;
mod to_guest;

use naive::{Packet, Random};

use crate::datapath::testing::*;
use crate::datapath::{Direction, RxSlot, TxSlot, BURST, MAX_FRAME};
use crate::effort;
use crate::model::{Driver, PackedDriver, Virtqueue};
use crate::virtio::features::*;
use crate::virtio::net_hdr::{Offload, GSO_ECN, GSO_NONE, GSO_TCPV4, GSO_TCPV6, NEEDS_CSUM};

type Rig<D> = crate::datapath::testing::Rig<D>;

const PACKED: Features = V1.with(VIRTIO_F_RING_PACKED);

/// Runs the test for both layouts, and for drivers from before VIRTIO 1.0, whose header may be shorter.
macro_rules! both_layouts {
    ($($name:ident;)*) => {
        mod split {
            $(#[test] fn $name() { super::$name::<super::Driver>(super::V1); })*
        }
        mod legacy {
            $(#[test] fn $name() { super::$name::<super::Driver>(super::Features::NONE); })*
        }
        mod packed {
            $(#[test] fn $name() { super::$name::<super::PackedDriver>(super::PACKED); })*
        }
    };
}
use both_layouts;

/// What a guest acknowledges to leave all to us.
const LEAVES: Features = VIRTIO_NET_F_CSUM
    .with(VIRTIO_NET_F_HOST_TSO4)
    .with(VIRTIO_NET_F_HOST_TSO6);
/// What a guest acknowledges to take all.
const TAKES: Features = VIRTIO_NET_F_GUEST_CSUM
    .with(VIRTIO_NET_F_GUEST_TSO4)
    .with(VIRTIO_NET_F_GUEST_TSO6)
    .with(VIRTIO_NET_F_GUEST_ECN);
