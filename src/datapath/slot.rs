//! UNSAFE: packet memory of the host, lent for one burst. The layout is that of the C border's slots.

use std::marker::PhantomData;
use std::mem::{offset_of, MaybeUninit};
use std::slice;

use crate::memory::GuestSlice;
use crate::virtio::net_hdr::Offload;

/// Bytes of the largest frame that a slot can be made for: with headroom, and what else a host keeps beside it, a buffer
/// of less than 64 KiB. No driver sends more: Linux leaves itself 320 bytes below 64 KiB.
pub const MAX_FRAME: u32 = 65360;

/// Room for one packet to be received.
///
/// # Invariants
///
/// `data`, not null, is writable for `room` bytes, for nobody else, during `'a`; the first `len` of them are written.
#[repr(C)]
#[derive(Debug)]
pub struct RxSlot<'a> {
    data: *mut u8,
    room: u32,
    len: u32,
    /// Written only with a frame that has one: a slot comes without.
    offload: Offload,
    memory: PhantomData<&'a mut [u8]>,
}

/// One packet to be sent.
///
/// # Invariants
///
/// `data`, not null, is readable for `len` bytes, which nobody writes, during `'a`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct TxSlot<'a> {
    data: *const u8,
    len: u32,
    offload: Offload,
    memory: PhantomData<&'a [u8]>,
}

// SAFETY: a slot is a unique loan of bytes, and bytes may be written by any thread.
unsafe impl Send for RxSlot<'_> {}
// SAFETY: a slot is a loan of bytes that nobody writes.
unsafe impl Send for TxSlot<'_> {}

impl<'a> RxSlot<'a> {
    /// A slot over `room`.
    pub fn new(room: &'a mut [u8]) -> Self {
        let len = u32::try_from(room.len()).unwrap_or(u32::MAX);
        Self {
            data: room.as_mut_ptr(),
            room: len,
            len: 0,
            offload: Offload::NONE,
            memory: PhantomData,
        }
    }

    /// Bytes received.
    pub fn len(&self) -> u32 {
        self.len
    }

    /// Whether nothing was received.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes that fit.
    pub fn room(&self) -> u32 {
        self.room
    }

    /// What is left to be done to the frame received.
    pub fn offload(&self) -> Offload {
        self.offload
    }

    /// Says what is left to be done to the frame received.
    pub(super) fn set_offload(&mut self, offload: Offload) {
        self.offload = offload;
    }

    /// The frame received.
    #[inline(always)]
    pub fn frame(&self) -> &[u8] {
        // SAFETY: the first len bytes are ours and written.
        unsafe { slice::from_raw_parts(self.data, self.len as usize) }
    }

    /// The frame received, to be completed.
    pub(super) fn frame_mut(&mut self) -> &mut [u8] {
        // SAFETY: the first len bytes are ours alone and written.
        unsafe { slice::from_raw_parts_mut(self.data, self.len as usize) }
    }

    /// Makes the slot empty again.
    #[inline(always)]
    pub(super) fn clear(&mut self) {
        self.len = 0;
    }

    /// Replaces the content by guest bytes, all or none if they do not fit.
    #[inline(always)]
    pub(super) fn receive(&mut self, bytes: GuestSlice<'_>) -> bool {
        self.len = 0;
        let fits = bytes.read_all(self.spare());
        if fits {
            self.len = bytes.len();
        }
        fits
    }

    /// Appends guest bytes, all or none if they do not fit.
    #[inline(always)]
    pub(super) fn append(&mut self, bytes: GuestSlice<'_>) -> bool {
        let fits = bytes.read_all(self.spare());
        if fits {
            self.len += bytes.len();
        }
        fits
    }

    /// Replaces the content by `frame`, unless it does not fit.
    pub(super) fn set(&mut self, frame: &[u8]) -> bool {
        self.clear();
        let Some(spare) = self.spare().get_mut(..frame.len()) else {
            return false;
        };
        for (to, from) in spare.iter_mut().zip(frame) {
            to.write(*from);
        }
        self.len = u32::try_from(frame.len()).unwrap_or(0);
        true
    }

    /// The bytes not yet written.
    #[inline(always)]
    fn spare(&mut self) -> &mut [MaybeUninit<u8>] {
        let (len, room) = (self.len.min(self.room) as usize, self.room as usize);
        // SAFETY: len <= room, and room bytes at data are ours alone.
        unsafe { slice::from_raw_parts_mut(self.data.add(len).cast(), room - len) }
    }
}

impl<'a> TxSlot<'a> {
    /// A slot of this frame.
    pub fn new(frame: &'a [u8]) -> Self {
        let len = u32::try_from(frame.len()).unwrap_or(u32::MAX);
        Self {
            data: frame.as_ptr(),
            len,
            offload: Offload::NONE,
            memory: PhantomData,
        }
    }

    /// A slot of this frame, to which something is left to be done.
    pub fn with_offload(frame: &'a [u8], offload: Offload) -> Self {
        Self {
            offload,
            ..Self::new(frame)
        }
    }

    /// What is left to be done to the frame.
    #[inline(always)]
    pub fn offload(&self) -> Offload {
        self.offload
    }

    /// Bytes of the longest frame on the wire: of a segment, if it is to be cut into such.
    #[inline(always)]
    pub fn wire_len(&self) -> u32 {
        match self.offload.is_gso() {
            true => self.segment_len(),
            false => self.len,
        }
    }

    #[cold]
    fn segment_len(&self) -> u32 {
        let segment = u32::from(self.offload.hdr_len) + u32::from(self.offload.gso_size);
        segment.min(self.len)
    }

    /// Bytes in the frame.
    pub fn len(&self) -> u32 {
        self.len
    }

    /// Whether the frame has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The frame.
    #[inline(always)]
    pub fn frame(&self) -> &'a [u8] {
        // SAFETY: len bytes at data are readable and not written during 'a.
        unsafe { slice::from_raw_parts(self.data, self.len as usize) }
    }
}

// A slot's members as the C border has them: no padding but at the end.
const _: () = assert!(size_of::<Offload>() == 10);
const _: () = assert!(offset_of!(RxSlot<'_>, offload) == size_of::<*mut u8>() + 8);
const _: () = assert!(offset_of!(TxSlot<'_>, offload) == size_of::<*const u8>() + 4);
