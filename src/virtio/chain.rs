//! One buffer: a chain of descriptors, walked once, in either direction (VIRTIO 1.2, 2.7.5 and 2.8.6).
//!
//! Each descriptor is fetched once, as a value; that value is judged and then used. A walk ends after at
//! most `size` buffers, however the descriptors refer to each other.

use std::marker::PhantomData;

use super::desc::{Desc, DESC_SIZE, VIRTQ_DESC_F_INDIRECT, VIRTQ_DESC_F_NEXT, VIRTQ_DESC_F_WRITE};
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
    /// An indirect table of which no region maps the entry due next.
    #[error("indirect table entry at {0} is not mapped")]
    TableUnmapped(
        /// The first address of the entry; where it goes on may be what is not mapped.
        GuestAddr,
    ),
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

/// A ring as chains see it: what split and packed rings differ in.
pub trait DescRing {
    /// Descriptors in the ring.
    fn size(&self) -> u16;

    /// A copy of descriptor `index`, fetched once, or `None` if the ring has no such descriptor.
    fn desc(&self, index: u16) -> Option<Desc>;

    /// The index of the descriptor behind `desc`, which is at `index` and has the NEXT flag.
    fn following(&self, index: u16, desc: &Desc) -> u16;

    /// Entry `index` of an indirect table of `entries`, from its bytes; `next` is an index of that table.
    fn entry(bytes: [u8; DESC_SIZE as usize], index: u16, entries: u16) -> Desc;

    /// Asks for descriptor `index`, of any value, to read it soon.
    fn prefetch_desc(&self, index: u16);
}

/// What a chain takes of its ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Descriptors of the ring, without those of an indirect table.
    pub descs: u16,
    /// `next` of the last of them: the buffer id, in a packed ring.
    pub last: u16,
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
    cursor.whole(desc.addr(), desc.len)
}

/// Bytes of an indirect table that are asked for ahead: a header and seven pieces.
const TABLE: u32 = 8 * DESC_SIZE;

/// Asks for what a walk from this first descriptor will read next.
#[inline]
pub fn prefetch_second<R: DescRing>(ring: &R, index: u16, desc: &Desc, cursor: &mut Cursor<'_>) {
    if desc.has(VIRTQ_DESC_F_INDIRECT) {
        if let Some(table) = cursor.readable_prefix(desc.addr(), TABLE) {
            table.prefetch_read(0, desc.len.saturating_sub(1).min(TABLE - 1));
        }
    } else if desc.has(VIRTQ_DESC_F_NEXT) {
        ring.prefetch_desc(ring.following(index, desc));
    }
}

/// Bytes of a piece that are asked for ahead. The processor sees by itself how it goes on.
const NEXT: u32 = 2048;

/// Where the descriptors of a chain are.
#[derive(Clone, Copy)]
enum Table {
    Ring,
    Indirect { addr: GuestAddr, entries: u16 },
}

/// A walk along one chain.
pub struct Chain<'m, R, D> {
    ring: &'m R,
    table: Table,
    /// The descriptor to take next, as fetched, with its index.
    fetched: Option<(u16, Desc)>,
    /// Else its index.
    next: Option<u16>,
    extent: Extent,
    /// What is left of the descriptor taken last.
    rest: (GuestAddr, u32),
    /// Descriptors that may still come.
    budget: u16,
    bytes: u32,
    allow_indirect: bool,
    direction: PhantomData<D>,
}

impl<'m, R: DescRing, D: Direction> Chain<'m, R, D> {
    /// The chain that begins with the descriptor `first`, already fetched from index `at` of the ring.
    #[inline]
    pub fn new(ring: &'m R, at: u16, first: Desc, allow_indirect: bool) -> Self {
        Self {
            ring,
            table: Table::Ring,
            fetched: Some((at, first)),
            next: None,
            extent: Extent { descs: 0, last: 0 },
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

    /// Asks for the first lines of what comes behind the piece taken last, which is to be copied in the meantime. The next
    /// descriptor is looked at for that alone: what counts is the copy that the walk fetches.
    #[inline]
    pub fn prefetch_next(&self, cursor: &mut Cursor<'m>) {
        let Some(index) = self.next else { return };
        let desc = match self.table {
            Table::Ring => self.ring.desc(index),
            Table::Indirect { addr, entries } if index < entries => fetch_entry(addr, index, cursor)
                .ok()
                .map(|bytes| R::entry(bytes, index, entries)),
            Table::Indirect { .. } => None,
        };
        if let Some(buffer) = desc.and_then(|desc| cursor.prefix(desc.addr(), desc.len)) {
            buffer.prefetch_read_all(0..buffer.len().min(NEXT));
        }
    }

    /// Passes over what is left of the descriptor taken last: of one that is not mapped, to look at the others.
    pub fn skip(&mut self) {
        self.rest.1 = 0;
    }

    /// Descriptors taken so far.
    pub fn walked(&self) -> u16 {
        self.ring.size() - self.budget
    }

    /// Takes what is left of the chain in the ring without looking at its buffers, and says what the whole takes.
    ///
    /// # Errors
    ///
    /// As for [`Chain::next`].
    pub fn finish(&mut self, cursor: &mut Cursor<'m>) -> Result<Extent, ChainError> {
        while matches!(self.table, Table::Ring) && self.next_desc(cursor)?.is_some() {}
        Ok(self.extent)
    }

    /// Takes the next descriptor and judges all of it but its address.
    fn next_desc(&mut self, cursor: &mut Cursor<'m>) -> Result<Option<Desc>, ChainError> {
        let Some((mut index, mut desc)) = self.fetch(cursor)? else {
            return Ok(None);
        };
        if desc.has(VIRTQ_DESC_F_INDIRECT) {
            self.enter(&desc)?;
            (index, desc) = match self.fetch(cursor)? {
                Some((index, first)) if !first.has(VIRTQ_DESC_F_INDIRECT) => (index, first),
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
        self.next = desc.has(VIRTQ_DESC_F_NEXT).then(|| match self.table {
            Table::Ring => self.ring.following(index, &desc),
            Table::Indirect { .. } => desc.next,
        });
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

    /// Fetches the next descriptor from wherever the chain is, once, and says its index there.
    fn fetch(&mut self, cursor: &mut Cursor<'m>) -> Result<Option<(u16, Desc)>, ChainError> {
        if let Some((index, desc)) = self.fetched.take() {
            self.count(&desc);
            return Ok(Some((index, desc)));
        }
        let Some(index) = self.next.take() else {
            return Ok(None);
        };
        let desc = match self.table {
            Table::Ring => {
                let entries = self.ring.size();
                let beyond = ChainError::OutOfTable { index, entries };
                let desc = self.ring.desc(index).ok_or(beyond)?;
                self.count(&desc);
                desc
            }
            Table::Indirect { addr, entries } if index < entries => {
                R::entry(fetch_entry(addr, index, cursor)?, index, entries)
            }
            Table::Indirect { entries, .. } => return Err(ChainError::OutOfTable { index, entries }),
        };
        Ok(Some((index, desc)))
    }

    /// Counts a descriptor of the ring.
    fn count(&mut self, desc: &Desc) {
        self.extent = Extent {
            descs: self.extent.descs + 1,
            last: desc.next,
        };
    }
}

/// Reads entry `index` of the indirect table at `addr`, which may go on in another region, even within an entry.
fn fetch_entry(
    addr: GuestAddr,
    index: u16,
    cursor: &mut Cursor<'_>,
) -> Result<[u8; DESC_SIZE as usize], ChainError> {
    let addr = addr
        .checked_add(u64::from(DESC_SIZE) * u64::from(index))
        .ok_or(ChainError::TableUnmapped(addr))?;
    let unmapped = ChainError::TableUnmapped(addr);
    let slice = cursor.readable_prefix(addr, DESC_SIZE).ok_or(unmapped)?;
    match slice.read_array() {
        Some(bytes) => Ok(bytes),
        None => {
            let mut bytes = [0; DESC_SIZE as usize];
            cursor.read(addr, &mut bytes).map_err(|_| unmapped)?;
            Ok(bytes)
        }
    }
}

#[cfg(test)]
mod tests;
