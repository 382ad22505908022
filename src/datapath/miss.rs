//! Misses: chains behind an IOMMU whose addresses are not known yet. No fault of the driver: the ring waits at such a
//! chain, with nothing of it taken, until the control thread has asked where it leads.

use super::config::{Direction, FaultReason};
use crate::memory::{Access, Cursor, MemTable, Miss};
use crate::virtio::chain::{self, Chain, ChainError, DescRing};
use crate::virtio::desc::{Desc, DESC_SIZE, VIRTQ_DESC_F_INDIRECT};

/// Descriptors that one look through a ring walks at most.
const WORK: u32 = 4096;
/// Chains that are looked at, from the next one on: two bursts of them. Of a guest that takes everything back every few
/// milliseconds more would be asked for than is ever used.
pub(super) const AHEAD: u16 = 64;

/// Why a burst ended before its time.
#[derive(Clone, Copy, Debug)]
pub(super) enum Halt {
    /// The driver broke the ring.
    Fault(FaultReason),
    /// The next chain leads to an unknown address.
    Miss(Miss),
}

impl Halt {
    /// What `reason`, found by a burst that accesses buffers like this, is in a ring of this memory.
    #[cold]
    pub(super) fn new(mem: &MemTable, reason: FaultReason, access: Access) -> Self {
        let miss = match &reason {
            FaultReason::Chain { error, .. } => of(mem, error, access),
            FaultReason::AvailJump { .. } => None,
        };
        miss.map_or(Self::Fault(reason), Self::Miss)
    }
}

/// The miss that an error is, if it is one, of a chain whose buffers are accessed like this.
pub(super) fn of(mem: &MemTable, error: &ChainError, access: Access) -> Option<Miss> {
    let (addr, len, access) = match *error {
        ChainError::Unmapped { addr, len } => (addr, len, access),
        ChainError::TableUnmapped(addr) => (addr, DESC_SIZE, Access::Read),
        _ => return None,
    };
    let iova = mem.first_miss(addr, len, access)?;
    Some(Miss { iova, access })
}

impl Direction {
    /// What the device does with buffers.
    pub(super) fn access(self) -> Access {
        match self {
            Self::Dequeue => Access::Read,
            Self::Enqueue => Access::Write,
        }
    }
}

/// A look through the chains of a ring, one after the other.
pub(super) struct Search<'a, 'm> {
    mem: &'m MemTable,
    cursor: Cursor<'m>,
    access: Access,
    /// Descriptors that may still be walked.
    work: u32,
    /// Gets each miss, and says whether to go on.
    visit: &'a mut dyn FnMut(Miss) -> bool,
}

impl<'a, 'm> Search<'a, 'm> {
    /// `None` if not behind an IOMMU.
    pub(super) fn new(
        mem: &'m MemTable,
        direction: Direction,
        visit: &'a mut dyn FnMut(Miss) -> bool,
    ) -> Option<Self> {
        let cursor = match direction {
            Direction::Dequeue => mem.cursor(0),
            Direction::Enqueue => mem.cursor_to_write(0),
        };
        Some(Self {
            mem,
            cursor: cursor.filter(|_| mem.is_behind_iommu())?,
            access: direction.access(),
            work: WORK,
            visit,
        })
    }

    /// Looks at one chain, of which nothing is copied. Says where it ends, unless the search is over.
    pub(super) fn chain<R: DescRing, D: chain::Direction>(
        &mut self,
        mut chain: Chain<'m, R, D>,
    ) -> Option<chain::Extent> {
        loop {
            match chain.next(&mut self.cursor) {
                Ok(Some(_)) => {}
                Ok(None) => break,
                Err(error) => {
                    if !(self.visit)(of(self.mem, &error, self.access)?) {
                        return None;
                    }
                    if matches!(error, ChainError::TableUnmapped(_)) {
                        break;
                    }
                    chain.skip();
                }
            }
        }
        self.work = self.work.checked_sub(u32::from(chain.walked()))?;
        chain.finish(&mut self.cursor).ok()
    }
}

/// The miss that the first byte of a descriptor is, if it is one. Does not walk; allocates nothing.
pub(super) fn peek(mem: &MemTable, desc: Desc, access: Access) -> Option<Miss> {
    let (len, access) = match desc.has(VIRTQ_DESC_F_INDIRECT) {
        true => (1, Access::Read),
        false => (desc.len.min(1), access),
    };
    let iova = mem.first_miss(desc.addr(), len, access)?;
    Some(Miss { iova, access })
}

#[cfg(all(test, not(loom)))]
mod tests;
