//! What drivers write that break the rules: chains that must break their ring, for the tests of bursts and of a whole switch.

mod packed;
mod split;

pub use packed::PACKED;
pub use split::SPLIT;

use super::{Net, Virtqueue};
use crate::datapath::Direction;
use crate::virtio::chain::ChainError;
use crate::virtio::desc::VIRTQ_DESC_F_WRITE;

/// A bad chain, and what it is found guilty of. Indirect descriptors are negotiated, and mergeable buffers.
#[derive(Debug)]
pub struct Crime<D: Virtqueue> {
    /// What is bad about it.
    pub name: &'static str,
    /// Chains that are moved before it.
    pub good: usize,
    write: fn(&Net<D>, flags: u16),
    error: fn(&Net<D>) -> ChainError,
}

impl<D: Virtqueue> Crime<D> {
    /// Gives the device three chains on a fresh ring, the second of them bad; a third that is good comes too late. Says
    /// what the device must find.
    pub fn commit(&self, net: &mut Net<D>, direction: Direction) -> ChainError {
        let flags = match direction {
            Direction::Dequeue => {
                (0..3).for_each(|seed| assert!(net.send(&[2 * seed; 60])));
                0
            }
            Direction::Enqueue => {
                assert_eq!(net.supply(3), 3);
                VIRTQ_DESC_F_WRITE
            }
        };
        (self.write)(net, flags);
        if self.good > 0 {
            net.driver.publish();
        }
        (self.error)(net)
    }
}

/// A crime in the place of the second of three good chains.
const fn crime<D: Virtqueue>(
    name: &'static str,
    write: fn(&Net<D>, u16),
    error: fn(&Net<D>) -> ChainError,
) -> Crime<D> {
    Crime {
        name,
        good: 1,
        write,
        error,
    }
}

/// Where the region ends that the ring's buffers are in.
fn end<D: Virtqueue>(net: &Net<D>) -> u64 {
    let (table, buffer) = (net.driver.memory().table(), net.buffer(0));
    let descs = table.regions().iter().map(|region| *region.desc());
    let mut around = descs.filter(|desc| (desc.guest.0..desc.guest.0 + desc.size).contains(&buffer.0));
    around.next().map_or(0, |desc| desc.guest.0 + desc.size)
}
