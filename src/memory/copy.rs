//! UNSAFE: the bytes of guest memory. The only file that copies them.
//!
//! The guest may write any of these bytes at any time, also while we copy them. So nobody gets a reference to
//! them; bytes come out once, by value, and are judged only afterwards. A copy that the guest changes half-way
//! is the guest's own garbage.

use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::ops::Range;
use std::ptr;
use std::sync::atomic::{AtomicU16, Ordering};

use super::cpu;
use super::meddle;
use super::region::Region;
use super::stitch::Stitch;
use super::table::MemTable;

/// Where a region lies, or a part of one: what translation needs of it.
///
/// # Invariants
///
/// Lives only inside a [`MemTable`], which shares the [`Region`] or [`Stitch`] that keeps `host..host + size` mapped. `size` is not 0.
#[derive(Clone, Copy, Debug)]
pub(super) struct Span {
    guest: u64,
    size: u64,
    host: *mut u8,
}

// SAFETY: the pointer stands for memory of the process; what is reached through it goes by raw copies only.
unsafe impl Send for Span {}
// SAFETY: as above; a shared Span only hands out GuestSlices.
unsafe impl Sync for Span {}

impl Span {
    pub(super) fn new(region: &Region) -> Self {
        let mapping = region.mapping();
        Self {
            guest: region.desc().guest.0,
            size: mapping.size(),
            host: mapping.start(),
        }
    }

    /// As much of the region as lies at front-end addresses from `target` on, at most `extent` bytes and one more,
    /// seen from `guest` on. `None` if `target` is not in the region.
    pub(super) fn part(region: &Region, target: u64, extent: u64, guest: u64) -> Option<Self> {
        let mapping = region.mapping();
        let offset = target.checked_sub(region.desc().frontend.0)?;
        let room = mapping.size().checked_sub(offset).filter(|room| *room > 0)?;
        Some(Self {
            guest,
            size: extent.checked_add(1).map_or(room, |size| size.min(room)),
            // SAFETY: offset < size, which was mapped, so it fits usize and stays inside the mapping.
            host: unsafe { mapping.start().add(usize::try_from(offset).ok()?) },
        })
    }

    /// The memory of a stitch, which the table must share as it does regions.
    pub(super) fn stitched(stitch: &Stitch) -> Self {
        Self {
            guest: stitch.first(),
            size: stitch.size(),
            host: stitch.start(),
        }
    }

    /// How many bytes it has.
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    #[inline(always)]
    pub(super) fn guest(&self) -> u64 {
        self.guest
    }

    /// The `len` bytes at `offset`, if the region holds them all.
    #[inline(always)]
    pub(super) fn whole(&self, offset: u64, len: u32) -> Option<GuestSlice<'_>> {
        let room = self.size.checked_sub(u64::from(len))?;
        if offset > room {
            return None;
        }
        #[expect(
            clippy::cast_possible_truncation,
            reason = "offset <= size, which was mapped, so it fits usize"
        )]
        let offset = offset as usize;
        // SAFETY: offset + len <= size, and host..host + size is one mapping.
        let ptr = unsafe { self.host.add(offset) };
        Some(GuestSlice {
            ptr,
            len,
            table: PhantomData,
        })
    }

    /// As many of the `len` bytes at `offset` as the region holds, or `None` if `offset` is outside.
    #[inline(always)]
    pub(super) fn prefix(&self, offset: u64, len: u32) -> Option<GuestSlice<'_>> {
        if offset >= self.size {
            return None;
        }
        let room = u32::try_from(self.size - offset).unwrap_or(u32::MAX);
        #[expect(
            clippy::cast_possible_truncation,
            reason = "offset < size, which was mapped, so it fits usize"
        )]
        let offset = offset as usize;
        // SAFETY: offset < size, and host..host + size is one mapping.
        let ptr = unsafe { self.host.add(offset) };
        Some(GuestSlice {
            ptr,
            len: len.min(room),
            table: PhantomData,
        })
    }
}

/// Bytes of guest memory that lie together in our address space, mapped for as long as the table lives.
///
/// # Invariants
///
/// `ptr..ptr + len` is mapped, readable and writable, during `'m`.
#[derive(Clone, Copy)]
pub struct GuestSlice<'m> {
    ptr: *mut u8,
    len: u32,
    table: PhantomData<&'m MemTable>,
}

impl<'m> GuestSlice<'m> {
    /// The NUMA node its first byte lives on, where the kernel can say.
    pub fn numa_node(&self) -> Option<i32> {
        super::numa::node_of(self.ptr)
    }

    /// Bytes in it.
    #[inline(always)]
    pub fn len(&self) -> u32 {
        self.len
    }

    /// Whether it has no bytes.
    #[inline(always)]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Its address in this process, for ring memory whose owner keeps the table alive, and for alignment checks.
    pub(crate) fn as_ptr(&self) -> *mut u8 {
        self.ptr
    }

    /// The first `at` bytes, or all if it is shorter, and the others.
    #[inline(always)]
    pub fn split_at(&self, at: u32) -> (GuestSlice<'m>, GuestSlice<'m>) {
        let at = at.min(self.len);
        // SAFETY: at <= len, so both halves stay inside, the second possibly empty at the end.
        let rest = unsafe { self.ptr.add(at as usize) };
        (
            Self { len: at, ..*self },
            Self {
                ptr: rest,
                len: self.len - at,
                table: PhantomData,
            },
        )
    }

    /// Copies out as much as fits and says how much that was.
    #[inline]
    pub fn read(&self, to: &mut [u8]) -> usize {
        let len = to.len().min(self.len as usize);
        meddle::point();
        // SAFETY: both sides hold len bytes; `to` is ours alone, so it is not guest memory.
        unsafe { copy(self.ptr, to.as_mut_ptr(), len) };
        len
    }

    /// Copies all of it to the front of `to`, or nothing at all if it does not fit.
    #[inline(always)]
    pub fn read_all(&self, to: &mut [MaybeUninit<u8>]) -> bool {
        let len = self.len as usize;
        if len > to.len() {
            return false;
        }
        meddle::point();
        // SAFETY: both sides hold len bytes; `to` is ours alone, so it is not guest memory.
        unsafe { copy(self.ptr, to.as_mut_ptr().cast(), len) };
        true
    }

    /// The first `N` bytes, read exactly once, at any alignment.
    #[inline]
    pub fn read_array<const N: usize>(&self) -> Option<[u8; N]> {
        if N > self.len as usize {
            return None;
        }
        meddle::point();
        // SAFETY: N bytes are mapped, and byte arrays have no alignment. Volatile: never fetched again.
        Some(unsafe { ptr::read_volatile(self.ptr.cast::<[u8; N]>()) })
    }

    /// Copies in as much as fits and says how much that was.
    #[inline]
    pub fn write(&self, from: &[u8]) -> usize {
        let len = from.len().min(self.len as usize);
        // SAFETY: both sides hold len bytes; nobody may change `from`, so it is not guest memory.
        unsafe { copy(from.as_ptr(), self.ptr, len) };
        len
    }

    /// Copies in all of `from`, or nothing at all if it does not fit.
    #[inline(always)]
    pub fn write_all(&self, from: &[u8]) -> bool {
        if from.len() > self.len as usize {
            return false;
        }
        // SAFETY: both sides hold that many bytes; nobody may change `from`, so it is not guest memory.
        unsafe { copy(from.as_ptr(), self.ptr, from.len()) };
        true
    }

    /// Sees to it that a few bytes of a length known when compiled are there, unless they do not fit.
    ///
    /// Where they are there already they are not written: then the line stays with the driver's core, too, and neither core
    /// waits for it. Nothing comes of what is read but that.
    #[inline(always)]
    pub fn keep_array<const N: usize>(&self, bytes: [u8; N]) -> bool {
        if N > self.len as usize {
            return false;
        }
        let place = self.ptr.cast::<[u8; N]>();
        meddle::point();
        // SAFETY: N bytes are mapped, and byte arrays have no alignment.
        unsafe {
            if ptr::read(place) != bytes {
                ptr::write(place, bytes);
            }
        }
        true
    }

    /// The 16-bit word at the front, as ring indexes are read: what was written before its release is seen after this.
    /// `None` if it is not there or not aligned.
    pub fn load_acquire(&self) -> Option<u16> {
        self.word().map(|word| word.load(Ordering::Acquire))
    }

    /// Sets the 16-bit word at the front, as ring indexes are: what was written before this is seen after its acquire.
    /// Says whether it is there and aligned.
    pub fn store_release(&self, value: u16) -> bool {
        self.word()
            .map(|word| word.store(value, Ordering::Release))
            .is_some()
    }

    fn word(&self) -> Option<&'m AtomicU16> {
        if self.len < 2 || self.ptr.addr() % align_of::<AtomicU16>() != 0 {
            return None;
        }
        // SAFETY: two aligned bytes, mapped during 'm. Other accesses to such words from this process are atomic too.
        Some(unsafe { AtomicU16::from_ptr(self.ptr.cast()) })
    }

    /// Asks for the lines of the bytes `first` and `last`, to read them soon. Beyond the end that does no harm.
    #[inline(always)]
    pub fn prefetch_read(&self, first: u32, last: u32) {
        for at in [first, last] {
            cpu::prefetch_read(self.ptr.wrapping_add(at as usize));
        }
    }

    /// Asks to own the lines of the bytes `first` and `last`, to write them soon. Beyond the end that does no harm.
    #[inline(always)]
    pub fn prefetch_write(&self, first: u32, last: u32) {
        for at in [first, last] {
            cpu::prefetch_write(self.ptr.wrapping_add(at as usize));
        }
    }

    /// Whether byte `at` is the first of a line.
    #[inline(always)]
    pub fn is_line_at(&self, at: u32) -> bool {
        self.ptr.wrapping_add(at as usize).addr() % cpu::LINE == 0
    }

    /// Asks for the lines of the bytes `range`, to read them soon. Those beyond the end do no harm.
    #[inline(always)]
    pub fn prefetch_read_all(&self, range: Range<u32>) {
        for at in range.step_by(cpu::LINE) {
            cpu::prefetch_read(self.ptr.wrapping_add(at as usize));
        }
    }

    /// Asks to own the lines of the bytes `range`, to write them soon. Those beyond the end do no harm.
    #[inline(always)]
    pub fn prefetch_write_all(&self, range: Range<u32>) {
        for at in range.step_by(cpu::LINE) {
            cpu::prefetch_write(self.ptr.wrapping_add(at as usize));
        }
    }
}

/// Frames up to this many bytes are copied in line; the call of a general memcpy costs as much as their copy.
const INLINE_COPY: usize = 256;

/// A vector register's worth.
type Block = [u8; 16];
const BLOCK: usize = size_of::<Block>();

/// # Safety
///
/// `from` is readable and `to` writable for `len` bytes, and they do not overlap.
#[inline(always)]
unsafe fn copy(from: *const u8, to: *mut u8, len: usize) {
    // Blocks from the front, and as many that end with the last byte and may lie over some of those. Of each size the
    // code has no loop, or next to none: small frames are most of all frames.
    // SAFETY: of `len` bytes, at least so many blocks are in either half.
    unsafe {
        match len {
            33..=64 => ends::<2>(from, to, len),
            65..=128 => ends::<4>(from, to, len),
            16..=32 => ends::<1>(from, to, len),
            129..=INLINE_COPY => {
                ends::<4>(from, to, 128);
                let done = len.saturating_sub(128).min(128);
                // What is left is less than a half and ends with the last byte.
                match done > 64 {
                    true => ends::<4>(from.add(len - 128), to.add(len - 128), 128),
                    false => ends::<2>(from.add(len - 64), to.add(len - 64), 64),
                }
            }
            0..=STRIP => ptr::copy_nonoverlapping(from, to, len),
            _ => long(from, to, len),
        }
    }
}

/// Bytes that the C library copies by itself. Where it is told of more it may leave them to the processor's string
/// instruction, and how long that takes depends on how the two sides lie in their pages.
const STRIP: usize = 31 * cpu::LINE;

/// Copies many bytes, in strips.
///
/// # Safety
///
/// As for [`copy`].
#[inline(never)]
unsafe fn long(mut from: *const u8, mut to: *mut u8, len: usize) {
    let mut left = len;
    // All strips but the first begin with a line, where they are stored.
    let mut strip = STRIP - to.addr() % cpu::LINE;
    while left > strip {
        // SAFETY: strip < left, and so many bytes are there.
        unsafe {
            ptr::copy_nonoverlapping(from, to, strip);
            (from, to) = (from.add(strip), to.add(strip));
        }
        left -= strip;
        strip = STRIP;
    }
    // SAFETY: `left` bytes are there.
    unsafe { ptr::copy_nonoverlapping(from, to, left) };
}

/// Copies the first and the last `N` blocks of `len` bytes.
///
/// # Safety
///
/// As for [`copy`], and `len` is at least that of `N` blocks.
#[inline(always)]
unsafe fn ends<const N: usize>(from: *const u8, to: *mut u8, len: usize) {
    let last = len - N * BLOCK;
    for start in [0, last] {
        for block in 0..N {
            let at = start + block * BLOCK;
            // SAFETY: at + BLOCK <= len.
            unsafe {
                to.add(at)
                    .cast::<Block>()
                    .write(from.add(at).cast::<Block>().read())
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::effort;
    use crate::memory::GuestAddr;
    use crate::model::GuestMemory;

    #[test]
    #[cfg_attr(miri, ignore = "no kernel to forbid writing")]
    fn what_is_there_already_is_not_written() {
        let memory = GuestMemory::new(0x1000);
        memory.write(GuestAddr(0x1001), &[7; 12]);
        let table = memory.table();
        let slice = |addr, len| table.cursor(0).unwrap().prefix(GuestAddr(addr), len).unwrap();
        assert!(slice(0x1001, 20).keep_array([7; 12]));
        assert!(!slice(0x1001, 11).keep_array([7; 12]), "it does not fit");
        assert!(slice(0x1002, 20).keep_array([8; 12]));
        let mut now = [0; 15];
        memory.read(GuestAddr(0x1000), &mut now);
        assert_eq!(now, [0, 7, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 0]);
        // SAFETY: a page of our own mapping, which nobody writes to from here on: whoever does ends this process.
        let forbidden = unsafe { libc::mprotect(slice(0x1000, 1).as_ptr().cast(), 0x1000, libc::PROT_READ) };
        assert_eq!(forbidden, 0);
        assert!(slice(0x1002, 12).keep_array([8; 12]));
    }

    #[test]
    fn copies_of_every_length_are_exact_and_touch_nothing_else() {
        let from: Vec<u8> = (0..=250).cycle().take(9100).collect();
        let lengths = (0..600).step_by(effort::of(1, 13));
        for len in lengths.chain([STRIP - 1, STRIP, STRIP + 1, 2 * STRIP, 4096, 9001]) {
            for shift in [0, 1, 15] {
                let (before, mut to) = (50 + 3 * shift, vec![0xee; len + 200]);
                // SAFETY: 9100 - shift bytes are readable, len + 200 - before writable, and they are two allocations.
                unsafe { copy(from.as_ptr().add(shift), to.as_mut_ptr().add(before), len) };
                let (front, rest) = to.split_at(before);
                let (copied, back) = rest.split_at(len);
                assert_eq!(copied, &from[shift..shift + len]);
                assert!(front.iter().chain(back).all(|byte| *byte == 0xee), "{len}");
            }
        }
    }
}
