//! The features that burst code depends on, as constants: burst code is compiled once per set of them.

use super::config::RingConfig;
use crate::virtio::features::{VIRTIO_NET_F_MRG_RXBUF, VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use crate::virtio::net_hdr;

/// One combination of features.
pub(super) trait Set {
    const LONG: bool;
    /// Bytes of the virtio-net header.
    const HEADER: u32 = if Self::LONG { net_hdr::LONG } else { net_hdr::SHORT };
    const MERGE: bool;
    const EVENT_IDX: bool;
    const INDIRECT: bool;
    /// Whether the ring does anything beyond moving bytes, see [`RingConfig::has_extras`]: then flags are looked at as it
    /// runs, and otherwise nothing of that is even compiled in.
    const EXTRA: bool;
}

/// A [`Set`] by its number, of which each bit is a constant of it: see [`set_number`].
pub(super) struct Bits<const SET: usize>;

impl<const SET: usize> Set for Bits<SET> {
    const LONG: bool = SET & 1 != 0;
    const MERGE: bool = SET & 2 != 0;
    const EVENT_IDX: bool = SET & 4 != 0;
    const INDIRECT: bool = SET & 8 != 0;
    const EXTRA: bool = SET & 16 != 0;
}

/// How many sets there are.
pub(super) const SETS: usize = 32;

/// The number of the [`Set`] for this ring, less than [`SETS`].
pub(super) fn set_number(config: &RingConfig) -> usize {
    let features = config.features;
    let bits = [
        net_hdr::is_long(features),
        features.contains(VIRTIO_NET_F_MRG_RXBUF),
        features.contains(VIRTIO_RING_F_EVENT_IDX),
        features.contains(VIRTIO_RING_F_INDIRECT_DESC),
        config.has_extras(),
    ];
    bits.iter()
        .rev()
        .fold(0, |number, bit| number << 1 | usize::from(*bit))
}

/// One row per [`Set`], by its number: `$make` for each of them.
macro_rules! per_set {
    ($make:ident) => {
        [
            $make::<0>,
            $make::<1>,
            $make::<2>,
            $make::<3>,
            $make::<4>,
            $make::<5>,
            $make::<6>,
            $make::<7>,
            $make::<8>,
            $make::<9>,
            $make::<10>,
            $make::<11>,
            $make::<12>,
            $make::<13>,
            $make::<14>,
            $make::<15>,
            $make::<16>,
            $make::<17>,
            $make::<18>,
            $make::<19>,
            $make::<20>,
            $make::<21>,
            $make::<22>,
            $make::<23>,
            $make::<24>,
            $make::<25>,
            $make::<26>,
            $make::<27>,
            $make::<28>,
            $make::<29>,
            $make::<30>,
            $make::<31>,
        ]
    };
}
pub(super) use per_set;
