//! The features that burst code depends on, as constants: burst code is compiled once per set of them.

use crate::virtio::features::{
    Features, VIRTIO_NET_F_MRG_RXBUF, VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC,
};
use crate::virtio::net_hdr;

/// One combination of features.
pub(super) trait Set {
    const LONG: bool;
    /// Bytes of the virtio-net header.
    const HEADER: u32 = if Self::LONG { net_hdr::LONG } else { net_hdr::SHORT };
    const MERGE: bool;
    const EVENT_IDX: bool;
    const INDIRECT: bool;
}

/// A [`Set`] by its number, of which each bit is a constant of it: see [`set_number`].
pub(super) struct Bits<const SET: usize>;

impl<const SET: usize> Set for Bits<SET> {
    const LONG: bool = SET & 1 != 0;
    const MERGE: bool = SET & 2 != 0;
    const EVENT_IDX: bool = SET & 4 != 0;
    const INDIRECT: bool = SET & 8 != 0;
}

/// How many sets there are.
pub(super) const SETS: usize = 16;

/// The number of the [`Set`] for these features, less than [`SETS`].
pub(super) fn set_number(features: Features) -> usize {
    let bits = [
        net_hdr::is_long(features),
        features.contains(VIRTIO_NET_F_MRG_RXBUF),
        features.contains(VIRTIO_RING_F_EVENT_IDX),
        features.contains(VIRTIO_RING_F_INDIRECT_DESC),
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
        ]
    };
}
pub(super) use per_set;
