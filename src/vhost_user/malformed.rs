//! Why a message that fits its row is no request all the same.

use thiserror::Error;

use super::message::{Short, MAX_REGIONS};
use crate::memory::RegionDesc;

/// How a request differs from its row, or a value from its range.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum Malformed {
    /// The payload is not as long as the request has it.
    #[error("payload of {got} bytes, expected {expected}")]
    Payload {
        /// Bytes that came.
        got: usize,
        /// Bytes that the request has.
        expected: usize,
    },
    /// A field lies outside the payload.
    #[error(transparent)]
    Short(#[from] Short),
    /// A memory table of no or too many regions.
    #[error("{0} memory regions, expected 1 to {MAX_REGIONS}")]
    RegionCount(u32),
    /// Too few or too many file descriptors.
    #[error("came with {got} file descriptors, expected {min} to {max}")]
    Fds {
        /// Descriptors that came.
        got: usize,
        /// The fewest that are right.
        min: usize,
        /// The most that are right.
        max: usize,
    },
    /// No such vring.
    #[error("vring index {index}, this device has {vrings} vrings")]
    VringIndex {
        /// The index as sent.
        index: u64,
        /// Vrings of the device.
        vrings: u32,
    },
    /// The payload of SET_VRING_KICK, CALL or ERR has bits beyond the index and the no-descriptor flag.
    #[error("payload {0:#x} has bits set beyond vring index and no-descriptor flag")]
    VringFd(u64),
    /// A vring size the VIRTIO specification does not have.
    #[error("vring size {0}, expected 1 to 32768")]
    VringSize(u32),
    /// A vring address flag other than `VHOST_VRING_F_LOG`.
    #[error("vring address flags {0:#x}, known is 0x1")]
    VringFlags(u32),
    /// Neither on nor off.
    #[error("vring enable {0}, expected 0 or 1")]
    Enable(u32),
    /// A region of no bytes, or one that runs past the end of an address space.
    #[error("region {0:?} is empty or wraps around")]
    Region(RegionDesc),
    /// A dirty log of no bytes, or one that runs past the end of its file's offsets.
    #[error("log of {size:#x} bytes at offset {offset:#x} is empty or wraps around")]
    Log {
        /// Bytes of the bitmap.
        size: u64,
        /// Where it begins in the file.
        offset: u64,
    },
    /// The front-end could not take note of the addresses that its memory has here.
    #[error("acknowledges with {0:#x}, expected 0")]
    Acknowledgement(u64),
    /// An MTU that Ethernet does not have.
    #[error("MTU {0}, expected 68 to 65535")]
    Mtu(u64),
    /// An IOTLB message of a type that is not the front-end's, of no or wrapping addresses, or of no permission.
    #[error("IOTLB message of type {kind}, permission {perm}, {size:#x} bytes at {iova:#x}")]
    Iotlb {
        /// First I/O virtual address.
        iova: u64,
        /// Bytes.
        size: u64,
        /// Bits of what the device may do.
        perm: u8,
        /// `VHOST_IOTLB_*`.
        kind: u8,
    },
    /// An in-flight buffer for queues that there are none of.
    #[error(
        "in-flight buffer for {num_queues} vrings of {queue_size}, this device has {vrings} of at most 32768"
    )]
    Inflight {
        /// Vrings as sent.
        num_queues: u16,
        /// Entries as sent.
        queue_size: u16,
        /// Vrings of the device.
        vrings: u32,
    },
    /// An access to no byte, or beyond the end of any configuration space.
    #[error("configuration space access of {size} bytes at {offset}")]
    Config {
        /// The first byte.
        offset: u32,
        /// Bytes.
        size: u32,
    },
    /// A write to the configuration space by nobody known.
    #[error("configuration space write with flags {0:#x}, expected 0 or 1")]
    ConfigFlags(u32),
    /// A transfer of the device's state that the specification does not have.
    #[error("device state transfer in direction {direction}, phase {phase}; expected 0 or 1, and 0")]
    Transfer {
        /// As sent.
        direction: u32,
        /// As sent.
        phase: u32,
    },
    /// A device status of more than eight bits.
    #[error("device status {0:#x} has more than 8 bits")]
    Status(u64),
}
