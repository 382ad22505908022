//! UNSAFE: the buffer in which a front-end keeps what a back-end was doing (vhost-user, "Inflight I/O tracking").
//!
//! It outlives this process, which is its purpose: what is in it when the process is killed, the next one goes on from. It
//! is the front-end's as guest memory is, so nothing in it is believed: positions are checked, lists have an end.
//! What the words mean is for the rings to say; here is where they are.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, AtomicU64, AtomicU8, Ordering};
use std::sync::Arc;

use rustix::fs::{ftruncate, MemfdFlags, SealFlags};

use super::addr::{FrontendAddr, GuestAddr};
use super::error::MemError;
use super::mapping::Mapping;
use super::pages::{memfd, seal};
use super::region::RegionDesc;

/// The payload of GET_INFLIGHT_FD and SET_INFLIGHT_FD.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InflightDesc {
    /// Bytes of the buffer.
    pub mmap_size: u64,
    /// Where it begins in its file, in bytes.
    pub mmap_offset: u64,
    /// Vrings that have a part in it.
    pub num_queues: u16,
    /// The most entries that any of them has.
    pub queue_size: u16,
}

/// Which of the specification's two layouts a part has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InflightLayout {
    /// `QueueRegionSplit`.
    Split,
    /// `QueueRegionPacked`.
    Packed,
}

impl InflightLayout {
    /// Bytes before the descriptor states.
    pub fn header(self) -> u64 {
        match self {
            Self::Split => 16,
            Self::Packed => 32,
        }
    }

    /// Bytes of one descriptor state.
    pub fn entry(self) -> u64 {
        match self {
            Self::Split => 16,
            Self::Packed => 32,
        }
    }

    /// Bytes from one vring's part to the next: parts begin at cache lines, as every back-end has them.
    pub fn stride(self, queue_size: u16) -> u64 {
        (self.header() + self.entry() * u64::from(queue_size)).next_multiple_of(ALIGN)
    }
}

/// What parts are aligned to.
const ALIGN: u64 = 64;
/// The file's name in /proc, for people.
const NAME: &str = "vhost-inflight";

/// Why a buffer is refused.
#[derive(Debug, thiserror::Error)]
pub enum InflightError {
    /// It has not the room that its own description asks for.
    #[error("{have} bytes cannot hold {num_queues} vrings of {queue_size}: that takes {need}")]
    TooSmall {
        /// Bytes it is said to have.
        have: u64,
        /// Vrings it is said to be for.
        num_queues: u16,
        /// Entries it is said to have for each.
        queue_size: u16,
        /// Bytes that takes.
        need: u64,
    },
    /// Its words would not be aligned.
    #[error("offset {0:#x} is not aligned to {ALIGN} bytes")]
    Offset(u64),
    /// It cannot be mapped.
    #[error(transparent)]
    Map(#[from] MemError),
}

/// A buffer in our address space, until the last ring that uses it goes.
#[derive(Debug)]
pub struct InflightMem {
    mapping: Mapping,
    desc: InflightDesc,
}

impl InflightMem {
    /// A new buffer, all zero, which is the specification's "uninitialized": its description and its file, whose size
    /// nobody can change any more.
    ///
    /// # Errors
    ///
    /// The system's refusal.
    pub fn create(
        num_queues: u16,
        queue_size: u16,
        layout: InflightLayout,
    ) -> io::Result<(InflightDesc, OwnedFd)> {
        let mmap_size = layout.stride(queue_size) * u64::from(num_queues);
        let file = memfd(NAME, MemfdFlags::ALLOW_SEALING)?;
        ftruncate(&file, mmap_size)?;
        seal(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
        let desc = InflightDesc {
            mmap_size,
            mmap_offset: 0,
            num_queues,
            queue_size,
        };
        Ok((desc, file))
    }

    /// Maps a buffer that a front-end hands over.
    ///
    /// # Errors
    ///
    /// [`InflightError`]: a description that does not add up, a file that is shorter than it says, the system's refusal.
    pub fn map(desc: InflightDesc, layout: InflightLayout, file: &OwnedFd) -> Result<Self, InflightError> {
        let InflightDesc {
            mmap_size: have,
            mmap_offset,
            num_queues,
            queue_size,
        } = desc;
        let need = layout.stride(queue_size) * u64::from(num_queues);
        if have < need {
            return Err(InflightError::TooSmall {
                have,
                num_queues,
                queue_size,
                need,
            });
        }
        if mmap_offset % ALIGN != 0 {
            return Err(InflightError::Offset(mmap_offset));
        }
        // A file that shrinks under us costs the front-end its connection: rather not.
        let _ = seal(file, SealFlags::SHRINK);
        let range = RegionDesc {
            guest: GuestAddr(0),
            size: have,
            frontend: FrontendAddr(0),
            mmap_offset,
        };
        let mapping = Mapping::new(&range, file.as_fd())?;
        Ok(Self { mapping, desc })
    }

    /// Whether its file was cut short, and that was noticed.
    pub fn is_lost(&self) -> bool {
        self.mapping.is_lost()
    }

    /// The part of vring `index`, which has `size` entries; `None` if the buffer has no such part.
    pub fn queue(self: &Arc<Self>, index: u16, size: u16, layout: InflightLayout) -> Option<InflightQueue> {
        let stride = layout.stride(self.desc.queue_size);
        let offset = stride * u64::from(index);
        let fits = index < self.desc.num_queues
            && size <= self.desc.queue_size
            && offset.checked_add(stride)? <= self.mapping.size();
        if !fits {
            return None;
        }
        let start = self.mapping.start().wrapping_add(usize::try_from(offset).ok()?);
        Some(InflightQueue {
            _mem: Arc::clone(self),
            start: NonNull::new(start)?,
            len: usize::try_from(stride).ok()?,
            entries: self.desc.queue_size,
        })
    }
}

/// One vring's part of the buffer.
///
/// # Invariants
///
/// `start`, aligned to 8, is mapped for `len` bytes while `_mem` lives.
#[derive(Clone, Debug)]
pub struct InflightQueue {
    _mem: Arc<InflightMem>,
    start: NonNull<u8>,
    len: usize,
    entries: u16,
}

// SAFETY: the pointer stands for memory of the process that `_mem` keeps mapped.
unsafe impl Send for InflightQueue {}
// SAFETY: all access goes through atomics.
unsafe impl Sync for InflightQueue {}

/// A word of a part: its offset, and how long it is.
macro_rules! words {
    ($($load:ident $store:ident $at:ident $atomic:ty = $number:ty;)*) => {$(
        /// The word at `offset`, 0 if there is none or `offset` is not a multiple of its length.
        pub fn $load(&self, offset: usize) -> $number {
            super::meddle::point();
            self.$at(offset).map_or(0, |word| word.load(Ordering::Acquire))
        }

        /// Sets the word at `offset`, after all that was stored before. Nothing happens where there is no such word.
        #[inline]
        pub fn $store(&self, offset: usize, value: $number) {
            super::crash::point();
            if let Some(word) = self.$at(offset) {
                word.store(value, Ordering::Release);
            }
        }

        #[inline(always)]
        fn $at(&self, offset: usize) -> Option<&$atomic> {
            if !self.has_word(offset, size_of::<$atomic>()) {
                return None;
            }
            // SAFETY: the word is inside the part, which is mapped while self lives and aligned to 8; all access from this
            // process is atomic.
            Some(unsafe { <$atomic>::from_ptr(self.start.as_ptr().add(offset).cast()) })
        }
    )*};
}

impl InflightQueue {
    words! {
        load_u8 store_u8 at_u8 AtomicU8 = u8;
        load_u16 store_u16 at_u16 AtomicU16 = u16;
        load_u64 store_u64 at_u64 AtomicU64 = u64;
    }

    /// Whether `len` bytes at `offset` are inside, and aligned.
    #[inline(always)]
    fn has_word(&self, offset: usize, len: usize) -> bool {
        offset % len == 0 && offset.checked_add(len).is_some_and(|end| end <= self.len)
    }

    /// Descriptor states in the part.
    pub fn entries(&self) -> u16 {
        self.entries
    }

    /// Whether the part has words in it: a fresh one has none.
    pub fn is_initialized(&self) -> bool {
        self.load_u16(VERSION_AT) == VERSION
    }

    /// Says that the part has words in it, once all of them are written.
    pub fn initialize(&self) {
        self.store_u64(FEATURES_AT, 0);
        self.store_u16(DESC_NUM_AT, self.entries);
        self.store_u16(VERSION_AT, VERSION);
    }

    /// Says that there is nothing in the part: its ring was stopped in order, and begins where the front-end says.
    pub fn forget(&self) {
        self.store_u16(VERSION_AT, 0);
    }
}

/// Where both layouts have their common fields.
const FEATURES_AT: usize = 0;
const VERSION_AT: usize = 8;
const DESC_NUM_AT: usize = 10;
/// The version of both.
const VERSION: u16 = 1;

#[cfg(test)]
mod tests {
    use super::*;

    fn fresh(num_queues: u16, queue_size: u16, layout: InflightLayout) -> Arc<InflightMem> {
        let (desc, file) = InflightMem::create(num_queues, queue_size, layout).unwrap();
        Arc::new(InflightMem::map(desc, layout, &file).unwrap())
    }

    #[test]
    fn the_layouts_are_as_long_as_the_specifications_structures() {
        // QueueRegionSplit of 256: 16 + 256 * 16; QueueRegionPacked: 32 + 256 * 32; both to whole lines.
        for (layout, size, stride) in [
            (InflightLayout::Split, 256, 4160),
            (InflightLayout::Packed, 256, 8256),
            (InflightLayout::Split, 1, 64),
            (InflightLayout::Packed, 1, 64),
            (InflightLayout::Split, 4, 128),
            (InflightLayout::Packed, 32768, 1_048_640),
        ] {
            assert_eq!(layout.stride(size), stride, "{layout:?} of {size}");
        }
    }

    #[test]
    #[cfg_attr(miri, ignore = "no files that can be sealed")]
    fn a_new_buffer_is_empty_sealed_and_has_a_part_for_each_ring() {
        let (desc, file) = InflightMem::create(4, 256, InflightLayout::Split).unwrap();
        assert_eq!((desc.mmap_size, desc.mmap_offset), (4 * 4160, 0));
        assert!(ftruncate(&file, 0).is_err(), "nobody can pull it away");
        assert!(ftruncate(&file, 1 << 20).is_err());
        let mem = Arc::new(InflightMem::map(desc, InflightLayout::Split, &file).unwrap());
        for index in 0..4 {
            let part = mem.queue(index, 256, InflightLayout::Split).unwrap();
            assert!(!part.is_initialized());
            part.initialize();
            assert!(part.is_initialized());
            assert_eq!(part.load_u16(DESC_NUM_AT), 256);
        }
        assert!(mem.queue(4, 256, InflightLayout::Split).is_none());
        assert!(mem.queue(0, 257, InflightLayout::Split).is_none());
        assert!(
            mem.queue(3, 256, InflightLayout::Packed).is_none(),
            "too small for that"
        );
    }

    #[test]
    fn words_outside_a_part_or_across_its_grain_are_nobodys() {
        let mem = fresh(2, 4, InflightLayout::Split);
        let [first, second] = [0, 1].map(|index| mem.queue(index, 4, InflightLayout::Split).unwrap());
        for offset in [128, 127, 1 << 40, usize::MAX] {
            first.store_u16(offset, 7);
            first.store_u64(offset, 7);
            assert_eq!((first.load_u16(offset), first.load_u64(offset)), (0, 0));
        }
        first.store_u16(126, 9);
        assert_eq!((first.load_u16(126), second.load_u64(0)), (9, 0));
        assert_eq!(first.load_u16(1), 0);
    }

    #[test]
    fn a_description_that_does_not_add_up_is_refused() {
        let (good, file) = InflightMem::create(4, 256, InflightLayout::Split).unwrap();
        let bad = [
            InflightDesc {
                mmap_size: 4 * 4160 - 1,
                ..good
            },
            InflightDesc {
                num_queues: 5,
                ..good
            },
            InflightDesc {
                queue_size: 260,
                ..good
            },
            InflightDesc {
                mmap_offset: 8,
                ..good
            },
            InflightDesc {
                mmap_offset: 64,
                ..good
            },
            InflightDesc {
                mmap_size: u64::MAX,
                ..good
            },
            InflightDesc {
                mmap_offset: u64::MAX - 63,
                ..good
            },
            InflightDesc {
                mmap_size: u64::MAX,
                mmap_offset: 1 << 63,
                ..good
            },
        ];
        for desc in bad {
            assert!(
                InflightMem::map(desc, InflightLayout::Split, &file).is_err(),
                "{desc:?}"
            );
        }
        assert!(InflightMem::map(good, InflightLayout::Split, &file).is_ok());
        assert!(InflightMem::map(good, InflightLayout::Packed, &file).is_err());
        let (pipe, _other) = std::io::pipe().unwrap();
        assert!(InflightMem::map(good, InflightLayout::Split, &pipe.into()).is_err());
    }
}
