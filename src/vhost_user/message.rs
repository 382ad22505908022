//! The wire format (vhost-user, "Message Specification"): header, flags and payload structures.
//!
//! All numbers are in the machine's byte order. Bytes of a peer are read one number at a time through
//! [`Fields`]; nothing is ever cast over them. The `#[repr(C)]` structures below are never filled from the
//! wire: they state the layout, and the assertions beside them prove that reading field by field agrees.

use std::mem::size_of;
use std::os::fd::OwnedFd;

use memoffset::offset_of;
use thiserror::Error;

use super::decode::VHOST_VRING_F_LOG;
use super::requests;
use crate::memory::{FrontendAddr, GuestAddr, RegionDesc};

/// Bytes of a message header.
pub const HEADER_SIZE: usize = 12;
/// The most regions one SET_MEM_TABLE can carry: it needs a file descriptor for each.
pub const MAX_REGIONS: usize = MAX_FDS;
/// The most file descriptors any message carries.
pub const MAX_FDS: usize = 8;
/// The longest payload of any request handled here: a whole configuration space, or SET_MEM_TABLE with every region.
pub const MAX_PAYLOAD: usize = CONFIG_HEADER_SIZE + MAX_CONFIG;
/// Bytes before those of a configuration space: offset, size and flags.
pub const CONFIG_HEADER_SIZE: usize = 12;
/// The most bytes that a configuration space has.
pub const MAX_CONFIG: usize = 256;
/// Payload bytes of a plain 64-bit number.
pub const U64_SIZE: usize = size_of::<u64>();
/// Payload bytes of a vring state description.
pub const VRING_STATE_SIZE: usize = size_of::<VringStateLayout>();
/// Payload bytes of a vring address description.
pub const VRING_ADDR_SIZE: usize = size_of::<VringAddrLayout>();
/// Payload bytes of a log description.
pub const LOG_SIZE: usize = size_of::<LogLayout>();
/// Bytes of one region of a memory regions description.
pub const REGION_SIZE: usize = size_of::<RegionLayout>();
/// Payload bytes of a single memory region description.
pub const SINGLE_REGION_SIZE: usize = size_of::<SingleRegionLayout>();
/// Bytes before the first region of a memory regions description: the count and padding.
pub const MEM_TABLE_HEADER_SIZE: usize = 8;

#[repr(C)]
struct HeaderLayout {
    request: u32,
    flags: u32,
    size: u32,
}

#[repr(C)]
struct VringStateLayout {
    index: u32,
    num: u32,
}

#[repr(C)]
struct VringAddrLayout {
    index: u32,
    flags: u32,
    desc: u64,
    used: u64,
    avail: u64,
    log: u64,
}

#[repr(C)]
struct LogLayout {
    size: u64,
    offset: u64,
}

#[repr(C)]
struct RegionLayout {
    guest: u64,
    size: u64,
    frontend: u64,
    mmap_offset: u64,
}

#[repr(C)]
struct SingleRegionLayout {
    padding: u64,
    region: RegionLayout,
}

const _: () = {
    assert!(size_of::<HeaderLayout>() == HEADER_SIZE);
    assert!(offset_of!(HeaderLayout, request) == 0);
    assert!(offset_of!(HeaderLayout, flags) == 4);
    assert!(offset_of!(HeaderLayout, size) == 8);
    assert!(VRING_STATE_SIZE == 8);
    assert!(offset_of!(VringStateLayout, index) == 0 && offset_of!(VringStateLayout, num) == 4);
    assert!(VRING_ADDR_SIZE == 40);
    assert!(offset_of!(VringAddrLayout, index) == 0 && offset_of!(VringAddrLayout, flags) == 4);
    assert!(offset_of!(VringAddrLayout, desc) == 8 && offset_of!(VringAddrLayout, used) == 16);
    assert!(offset_of!(VringAddrLayout, avail) == 24 && offset_of!(VringAddrLayout, log) == 32);
    assert!(LOG_SIZE == 16);
    assert!(offset_of!(LogLayout, size) == 0 && offset_of!(LogLayout, offset) == 8);
    assert!(REGION_SIZE == 32);
    assert!(offset_of!(RegionLayout, guest) == 0 && offset_of!(RegionLayout, size) == 8);
    assert!(offset_of!(RegionLayout, frontend) == 16 && offset_of!(RegionLayout, mmap_offset) == 24);
    assert!(SINGLE_REGION_SIZE == 40);
    assert!(offset_of!(SingleRegionLayout, padding) == 0 && offset_of!(SingleRegionLayout, region) == 8);
    assert!(MAX_PAYLOAD == 268);
    assert!(MAX_PAYLOAD >= MEM_TABLE_HEADER_SIZE + MAX_REGIONS * REGION_SIZE);
};

/// The `flags` word of a header: version in bits 0-1, reply in bit 2, need_reply in bit 3, the rest reserved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flags(pub u32);

impl Flags {
    const VERSION_MASK: u32 = 0x3;
    const VERSION: u32 = 0x1;
    const REPLY: u32 = 0x4;
    const NEED_REPLY: u32 = 0x8;

    /// The flags of every reply: version 1 and the reply bit, nothing else. QEMU refuses all others.
    pub const OF_A_REPLY: Flags = Flags(Flags::VERSION | Flags::REPLY);
    /// The flags of a request of ours that wants an answer.
    pub const OF_A_QUESTION: Flags = Flags(Flags::VERSION | Flags::NEED_REPLY);
    /// The flags of a request of ours that wants none.
    pub const OF_A_NOTE: Flags = Flags(Flags::VERSION);

    /// Whether the sender asks for an answer.
    pub fn need_reply(self) -> bool {
        self.0 & Self::NEED_REPLY != 0
    }

    /// Checks the flags of a request.
    ///
    /// # Errors
    /// Another version, the reply bit (a front-end has nothing to reply to), or a reserved bit.
    pub fn check_request(self) -> Result<(), FlagsError> {
        if self.0 & Self::VERSION_MASK != Self::VERSION {
            return Err(FlagsError::Version(self.0));
        }
        match self.0 & !(Self::VERSION_MASK | Self::NEED_REPLY) {
            0 => Ok(()),
            Self::REPLY => Err(FlagsError::Reply(self.0)),
            _ => Err(FlagsError::Reserved(self.0)),
        }
    }
}

/// Why the flags of a request were refused; each holds the whole word.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum FlagsError {
    /// The version field is not 1.
    #[error("flags {0:#x}: protocol version {v}, expected 1", v = .0 & Flags::VERSION_MASK)]
    Version(u32),
    /// A reply where a request was due.
    #[error("flags {0:#x}: a reply, and no request of ours is outstanding")]
    Reply(u32),
    /// A bit that no version of the protocol defines.
    #[error("flags {0:#x}: reserved bits are set")]
    Reserved(u32),
}

/// A message header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Number of the request.
    pub request: u32,
    /// Version, direction and whether an answer is wanted.
    pub flags: Flags,
    /// Bytes of payload that the sender announces.
    pub size: u32,
}

impl Header {
    /// Reads a header off the wire. Every byte pattern is a header; whether it makes sense is judged later.
    pub fn decode(bytes: [u8; HEADER_SIZE]) -> Header {
        let [r0, r1, r2, r3, f0, f1, f2, f3, s0, s1, s2, s3] = bytes;
        Header {
            request: u32::from_ne_bytes([r0, r1, r2, r3]),
            flags: Flags(u32::from_ne_bytes([f0, f1, f2, f3])),
            size: u32::from_ne_bytes([s0, s1, s2, s3]),
        }
    }

    /// The header as it goes over the wire.
    pub fn encode(self) -> [u8; HEADER_SIZE] {
        let mut bytes = [0; HEADER_SIZE];
        for (to, word) in bytes
            .chunks_exact_mut(4)
            .zip([self.request, self.flags.0, self.size])
        {
            to.copy_from_slice(&word.to_ne_bytes());
        }
        bytes
    }
}

/// A fault of a message that only the receiver can see. The session refuses such a message.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum Defect {
    /// The header announces more payload than any request has. The payload was not read.
    #[error("announces a payload of {0} bytes, no request has more than {MAX_PAYLOAD}")]
    Oversized(u32),
    /// The kernel could not hand over every file descriptor.
    #[error("came with more than {MAX_FDS} file descriptors, or this process can open no more")]
    FdsTruncated,
    /// File descriptors count with the first byte of a message only.
    #[error("file descriptors arrived inside the message, not with its first byte")]
    FdsInside,
}

/// One message as it was received.
#[derive(Debug)]
pub struct Message {
    /// Its header.
    pub header: Header,
    /// Its payload: `header.size` bytes, or none when the message has a defect that kept it from being read.
    pub payload: Vec<u8>,
    /// The file descriptors that came with its first byte. Dropping the message closes them.
    pub fds: Vec<OwnedFd>,
    /// What the receiver found wrong with it.
    pub defect: Option<Defect>,
}

impl Message {
    /// The specification's name of the request, for log lines.
    pub fn name(&self) -> &'static str {
        requests::name(self.header.request)
    }
}

/// A reply to request `request` with `payload` behind the header. Its flags are exactly
/// [`Flags::OF_A_REPLY`].
pub(super) fn reply(request: u32, payload: &[u8]) -> Vec<u8> {
    let header = Header {
        request,
        flags: Flags::OF_A_REPLY,
        // No payload of ours comes near that.
        size: u32::try_from(payload.len()).unwrap_or(u32::MAX),
    };
    let mut bytes = header.encode().to_vec();
    bytes.extend_from_slice(payload);
    bytes
}

/// The payload of a memory regions description, or of a single region's: each is as long as what asked for it.
pub(super) fn encode_regions(regions: &Regions) -> Vec<u8> {
    let (header, regions) = match regions {
        Regions::One(region) => ([0, 0], std::slice::from_ref(region)),
        Regions::Table(regions) => (
            [u32::try_from(regions.len()).unwrap_or(u32::MAX), 0],
            &regions[..],
        ),
    };
    let mut payload: Vec<u8> = header.iter().flat_map(|number| number.to_ne_bytes()).collect();
    for desc in regions {
        let fields = [desc.guest.0, desc.size, desc.frontend.0, desc.mmap_offset];
        payload.extend(fields.iter().flat_map(|number| number.to_ne_bytes()));
    }
    payload
}

/// Regions in an answer, with the addresses they have in the back-end in place of the front-end's.
#[derive(Debug)]
pub enum Regions {
    /// What ADD_MEM_REG added.
    One(RegionDesc),
    /// What SET_MEM_TABLE set, in its order.
    Table(Vec<RegionDesc>),
}

/// The payload of a vring state description.
pub(super) fn encode_vring_state(index: u32, num: u32) -> [u8; 8] {
    let [i0, i1, i2, i3] = index.to_ne_bytes();
    let [n0, n1, n2, n3] = num.to_ne_bytes();
    [i0, i1, i2, i3, n0, n1, n2, n3]
}

/// The payload ended before the field that was to be read.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("the payload ends inside a field")]
pub struct Short;

/// Reads a payload number by number; each byte is read once.
#[derive(Clone, Copy, Debug)]
pub struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    /// Starts at the first byte of `payload`.
    pub fn new(payload: &'a [u8]) -> Fields<'a> {
        Fields(payload)
    }

    /// All bytes that are left.
    pub fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.0)
    }

    /// Bytes not read yet.
    pub fn left(&self) -> usize {
        self.0.len()
    }

    /// The next `N` bytes.
    ///
    /// # Errors
    /// [`Short`] when fewer are left; so for every method here.
    pub fn bytes<const N: usize>(&mut self) -> Result<[u8; N], Short> {
        let (bytes, rest) = self.0.split_first_chunk().ok_or(Short)?;
        self.0 = rest;
        Ok(*bytes)
    }

    /// The next 32-bit number.
    pub fn u32(&mut self) -> Result<u32, Short> {
        self.bytes().map(u32::from_ne_bytes)
    }

    /// The next 64-bit number.
    pub fn u64(&mut self) -> Result<u64, Short> {
        self.bytes().map(u64::from_ne_bytes)
    }

    /// One region of a memory regions description.
    pub fn region(&mut self) -> Result<RegionDesc, Short> {
        Ok(RegionDesc {
            guest: GuestAddr(self.u64()?),
            size: self.u64()?,
            frontend: FrontendAddr(self.u64()?),
            mmap_offset: self.u64()?,
        })
    }
}

/// A vring address description. Ring addresses are the front-end's; `log` is the guest address under which
/// writes to the used ring are logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VringAddr {
    /// Vring index.
    pub index: u16,
    /// 0 or `VHOST_VRING_F_LOG` (1).
    pub flags: u32,
    /// Descriptor area.
    pub desc: FrontendAddr,
    /// Used ring, or the device area of a packed ring.
    pub used: FrontendAddr,
    /// Available ring, or the driver area of a packed ring.
    pub avail: FrontendAddr,
    /// Where writes to the used ring go in the dirty log.
    pub log: GuestAddr,
}

impl VringAddr {
    /// Whether it is the same memory in the same role, logged or not.
    pub fn is_same_ring(&self, other: &Self) -> bool {
        (self.desc, self.used, self.avail) == (other.desc, other.used, other.avail)
    }

    /// Where writes to the used ring are logged, if the front-end says so.
    pub fn log(&self) -> Option<GuestAddr> {
        (self.flags & VHOST_VRING_F_LOG != 0).then_some(self.log)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_survives_the_wire() {
        let header = Header {
            request: 5,
            flags: Flags(0x9),
            size: 72,
        };
        let bytes = header.encode();
        assert_eq!(bytes[..4], 5_u32.to_ne_bytes());
        assert_eq!(bytes[4..8], 9_u32.to_ne_bytes());
        assert_eq!(bytes[8..], 72_u32.to_ne_bytes());
        assert_eq!(Header::decode(bytes), header);
    }

    #[test]
    fn reply_flags_are_exactly_version_one_and_reply() {
        assert_eq!(Flags::OF_A_REPLY.0, 0x5);
        let bytes = reply(11, &encode_vring_state(3, 0x8000_0001));
        let header = Header::decode(*bytes.first_chunk().expect("a header"));
        assert_eq!(
            header,
            Header {
                request: 11,
                flags: Flags(0x5),
                size: 8
            }
        );
        assert_eq!(bytes[12..16], 3_u32.to_ne_bytes());
        assert_eq!(bytes[16..], 0x8000_0001_u32.to_ne_bytes());
    }

    #[test]
    fn only_version_one_requests_without_reserved_bits_pass() {
        for flags in [0x1, 0x9] {
            assert_eq!(Flags(flags).check_request(), Ok(()));
        }
        for flags in [0x0, 0x2, 0x3, 0x8, 0xa, 0xb] {
            assert_eq!(Flags(flags).check_request(), Err(FlagsError::Version(flags)));
        }
        for flags in [0x5, 0x4 | 0x9] {
            assert_eq!(Flags(flags).check_request(), Err(FlagsError::Reply(flags)));
        }
        for bit in 4..32 {
            let flags = 0x1 | 1 << bit;
            assert_eq!(Flags(flags).check_request(), Err(FlagsError::Reserved(flags)));
        }
    }

    #[test]
    fn fields_stop_at_the_end_of_the_payload() {
        let mut fields = Fields::new(&[1, 0, 0, 0, 9]);
        assert_eq!(fields.u32(), Ok(u32::from_ne_bytes([1, 0, 0, 0])));
        assert_eq!(fields.u32(), Err(Short));
        assert_eq!(fields.bytes(), Ok([9]));
        assert_eq!(fields.region(), Err(Short));
    }
}
