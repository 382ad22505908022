//! One buffer: a chain of descriptors, walked once, in either direction (VIRTIO 1.2, 2.7.5).
//!
//! Each descriptor is fetched once, as a value; that value is judged and then used. A walk ends after at
//! most `size` buffers, however the descriptors refer to each other.

use std::marker::PhantomData;

use super::desc::{Desc, DESC_SIZE, VIRTQ_DESC_F_INDIRECT, VIRTQ_DESC_F_NEXT, VIRTQ_DESC_F_WRITE};
use super::ring::SplitMem;
use crate::memory::{Cursor, GuestAddr, GuestSlice};

/// What a driver did wrong with a chain. The numbers are the driver's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChainError {
    /// A head in the avail ring, or a `next`, beyond the descriptor table.
    #[error("descriptor {index} is beyond a table of {entries}")]
    OutOfTable {
        /// The index that the driver wrote.
        index: u16,
        /// Entries of the ring or of the indirect table.
        entries: u16,
    },
    /// More buffers than the ring has descriptors: a loop, or a forbidden length (2.7.5.3.1).
    #[error("chain of more than {0} descriptors")]
    TooLong(u16),
    /// A buffer to be read where one to be written is due, or the reverse.
    #[error("descriptor for {len} bytes at {addr:#x} has the wrong direction")]
    Direction {
        /// Its guest address.
        addr: u64,
        /// Its length.
        len: u32,
    },
    /// A buffer of which no region maps some byte.
    #[error("{len} bytes at {addr} are not mapped")]
    Unmapped {
        /// The first address that is not.
        addr: GuestAddr,
        /// Bytes from there that the driver asked for.
        len: u32,
    },
    /// The lengths add up to more than 32 bits hold.
    #[error("chain of more than 2^32 bytes")]
    TooManyBytes,
    /// An indirect descriptor without VIRTIO_RING_F_INDIRECT_DESC.
    #[error("indirect descriptor was not negotiated")]
    IndirectNotNegotiated,
    /// An indirect descriptor in an indirect table.
    #[error("indirect descriptor inside an indirect table")]
    IndirectNested,
    /// An indirect descriptor with the NEXT flag.
    #[error("indirect descriptor with the NEXT flag")]
    IndirectWithNext,
    /// An indirect table whose length is no multiple of 16, zero, or more than the ring's size.
    #[error("indirect table of {0} bytes")]
    IndirectLength(u32),
}

/// Which way a buffer's bytes go.
pub trait Direction {
    /// What VIRTQ_DESC_F_WRITE must be in each descriptor.
    const WRITE: u16;
}

/// Buffers that the device reads: the guest's transmitq.
pub enum Readable {}

/// Buffers that the device writes: the guest's receiveq.
pub enum Writable {}

impl Direction for Readable {
    const WRITE: u16 = 0;
}

impl Direction for Writable {
    const WRITE: u16 = VIRTQ_DESC_F_WRITE;
}

/// The whole buffer of a chain of one plain descriptor that one region holds: the common case, without a walk.
#[inline(always)]
pub fn direct<'m, D: Direction>(desc: &Desc, cursor: &mut Cursor<'m>) -> Option<GuestSlice<'m>> {
    let flags = desc.flags & (VIRTQ_DESC_F_NEXT | VIRTQ_DESC_F_WRITE | VIRTQ_DESC_F_INDIRECT);
    if flags != D::WRITE {
        return None;
    }
    cursor
        .prefix(desc.addr(), desc.len)
        .filter(|slice| slice.len() == desc.len)
}

/// Asks for what a walk from this first descriptor will read next.
#[inline]
pub fn prefetch_second(ring: &SplitMem, desc: &Desc, cursor: &mut Cursor<'_>) {
    if desc.has(VIRTQ_DESC_F_INDIRECT) {
        if let Some(table) = cursor.prefix(desc.addr(), DESC_SIZE) {
            table.prefetch_read(0..DESC_SIZE);
        }
    } else if desc.has(VIRTQ_DESC_F_NEXT) {
        ring.prefetch_desc(desc.next);
    }
}

/// Where the descriptors of a chain are.
#[derive(Clone, Copy)]
enum Table {
    Ring,
    Indirect { addr: GuestAddr, entries: u16 },
}

/// A walk along one chain.
pub struct Chain<'m, D> {
    ring: &'m SplitMem,
    table: Table,
    /// The descriptor to take next, as fetched.
    fetched: Option<Desc>,
    /// Else its index.
    next: Option<u16>,
    /// What is left of the descriptor taken last.
    rest: (GuestAddr, u32),
    /// Descriptors that may still come.
    budget: u16,
    bytes: u32,
    allow_indirect: bool,
    direction: PhantomData<D>,
}

impl<'m, D: Direction> Chain<'m, D> {
    /// The chain that begins with the descriptor `first`, already fetched from the ring.
    #[inline]
    pub fn new(ring: &'m SplitMem, first: Desc, allow_indirect: bool) -> Self {
        Self {
            ring,
            table: Table::Ring,
            fetched: Some(first),
            next: None,
            rest: (GuestAddr(0), 0),
            budget: ring.size(),
            bytes: 0,
            allow_indirect,
            direction: PhantomData,
        }
    }

    /// The next bytes of the chain that lie together in memory, never none of them; `None` after the last.
    ///
    /// # Errors
    ///
    /// [`ChainError`]: the chain breaks a rule, and its ring is not to be trusted any more.
    pub fn next(&mut self, cursor: &mut Cursor<'m>) -> Result<Option<GuestSlice<'m>>, ChainError> {
        while self.rest.1 == 0 {
            let Some(desc) = self.next_desc(cursor)? else {
                return Ok(None);
            };
            self.rest = (desc.addr(), desc.len);
        }
        let (addr, len) = self.rest;
        let unmapped = ChainError::Unmapped { addr, len };
        let slice = cursor.prefix(addr, len).ok_or(unmapped)?;
        let left = len - slice.len();
        // A buffer may go on in the region next to this one, but not beyond the last address there is.
        let next = match left {
            0 => addr,
            _ => addr.checked_add(u64::from(slice.len())).ok_or(unmapped)?,
        };
        self.rest = (next, left);
        Ok(Some(slice))
    }

    /// Descriptors taken so far.
    pub fn walked(&self) -> u16 {
        self.ring.size() - self.budget
    }

    /// Takes the next descriptor and judges all of it but its address.
    fn next_desc(&mut self, cursor: &mut Cursor<'m>) -> Result<Option<Desc>, ChainError> {
        let Some(mut desc) = self.fetch(cursor)? else {
            return Ok(None);
        };
        if desc.has(VIRTQ_DESC_F_INDIRECT) {
            self.enter(&desc)?;
            desc = match self.fetch(cursor)? {
                Some(first) if !first.has(VIRTQ_DESC_F_INDIRECT) => first,
                _ => return Err(ChainError::IndirectNested),
            };
        }
        self.budget = self
            .budget
            .checked_sub(1)
            .ok_or(ChainError::TooLong(self.ring.size()))?;
        if desc.flags & VIRTQ_DESC_F_WRITE != D::WRITE {
            return Err(ChainError::Direction {
                addr: desc.addr,
                len: desc.len,
            });
        }
        self.bytes = self.bytes.checked_add(desc.len).ok_or(ChainError::TooManyBytes)?;
        self.next = desc.has(VIRTQ_DESC_F_NEXT).then_some(desc.next);
        Ok(Some(desc))
    }

    /// Goes on in the table that an indirect descriptor refers to. Its WRITE flag means nothing (2.7.5.3.2).
    fn enter(&mut self, desc: &Desc) -> Result<(), ChainError> {
        if !self.allow_indirect {
            return Err(ChainError::IndirectNotNegotiated);
        }
        if matches!(self.table, Table::Indirect { .. }) {
            return Err(ChainError::IndirectNested);
        }
        if desc.has(VIRTQ_DESC_F_NEXT) {
            return Err(ChainError::IndirectWithNext);
        }
        let entries = desc.len / DESC_SIZE;
        match u16::try_from(entries) {
            Ok(entries) if desc.len % DESC_SIZE == 0 && (1..=self.ring.size()).contains(&entries) => {
                self.table = Table::Indirect {
                    addr: desc.addr(),
                    entries,
                };
                self.next = Some(0);
                Ok(())
            }
            _ => Err(ChainError::IndirectLength(desc.len)),
        }
    }

    /// Fetches the next descriptor from wherever the chain is, once.
    fn fetch(&mut self, cursor: &mut Cursor<'m>) -> Result<Option<Desc>, ChainError> {
        if let Some(desc) = self.fetched.take() {
            return Ok(Some(desc));
        }
        let Some(index) = self.next.take() else {
            return Ok(None);
        };
        match self.table {
            Table::Ring => {
                let entries = self.ring.size();
                self.ring
                    .desc(index)
                    .ok_or(ChainError::OutOfTable { index, entries })
                    .map(Some)
            }
            Table::Indirect { addr, entries } if index < entries => {
                fetch_indirect(addr, index, cursor).map(Some)
            }
            Table::Indirect { entries, .. } => Err(ChainError::OutOfTable { index, entries }),
        }
    }
}

/// Reads entry `index` of the indirect table at `addr`, which may go on in another region, even within an entry.
fn fetch_indirect(addr: GuestAddr, index: u16, cursor: &mut Cursor<'_>) -> Result<Desc, ChainError> {
    let unmapped = ChainError::Unmapped { addr, len: DESC_SIZE };
    let addr = addr
        .checked_add(u64::from(DESC_SIZE) * u64::from(index))
        .ok_or(unmapped)?;
    let unmapped = ChainError::Unmapped { addr, len: DESC_SIZE };
    let slice = cursor.prefix(addr, DESC_SIZE).ok_or(unmapped)?;
    let bytes = match slice.read_array() {
        Some(bytes) => bytes,
        None => {
            let mut bytes = [0; DESC_SIZE as usize];
            cursor.read(addr, &mut bytes).map_err(|_| unmapped)?;
            bytes
        }
    };
    Ok(Desc::from_bytes(bytes))
}
