//! From bytes to requests: values that are in range, or the reason why not.
//!
//! A decoder gets a payload and descriptors that fit the request's [row](super::requests::TABLE). What it
//! returns is checked for good: nothing behind it masks an index or asks whether a flag is 0 or 1.

use std::os::fd::OwnedFd;

use thiserror::Error;

use super::iotlb::IotlbRequest;
use super::message::{Fields, Short, VringAddr, MAX_REGIONS, U64_SIZE};
use super::state::Transfer;
use crate::memory::{FrontendAddr, GuestAddr, InflightDesc, RegionDesc};

/// A request for the device. Values are in the range the protocol gives them; what they mean together
/// (does this ring lie in that memory) is the device's to prove.
#[derive(Debug)]
pub enum Request {
    /// A front-end takes the device.
    SetOwner,
    /// Deprecated; disable all rings, keep everything else.
    ResetOwner,
    /// VIRTIO and vhost feature bits, all of them offered.
    SetFeatures(u64),
    /// Replace all of the guest's memory: 1 to 8 regions.
    SetMemTable(Vec<(RegionDesc, OwnedFd)>),
    /// Add one region.
    AddMemReg(RegionDesc, OwnedFd),
    /// Remove the region with this guest address, front-end address and size; its offset means nothing.
    RemMemReg(RegionDesc),
    /// Log writes to guest memory here from now on, while `VHOST_F_LOG_ALL` is acknowledged.
    SetLogBase {
        /// Bytes of the bitmap.
        size: u64,
        /// Where it begins in the file.
        offset: u64,
        /// Its file.
        fd: OwnedFd,
    },
    /// What to signal when writes were logged.
    SetLogFd(OwnedFd),
    /// Number of descriptors, 1 to 32768. Not necessarily a power of two: a packed ring need not be.
    SetVringNum {
        /// Vring index.
        index: u16,
        /// Descriptors.
        num: u16,
    },
    /// Where the parts of a ring lie.
    SetVringAddr(VringAddr),
    /// Where to go on. Split: the next avail index, in 16 bits, so the device refuses more. Packed: avail
    /// index and wrap counter in bits 0-15, used in bits 16-31.
    SetVringBase {
        /// Vring index.
        index: u16,
        /// The indices as above.
        base: u32,
    },
    /// Stop the ring and tell where it stopped. Answered with [`Response::VringState`](super::Response).
    GetVringBase {
        /// Vring index.
        index: u16,
    },
    /// Start the ring. Without a descriptor it is polled.
    SetVringKick {
        /// Vring index.
        index: u16,
        /// What the driver signals for new buffers.
        fd: Option<OwnedFd>,
    },
    /// What to signal for used buffers; without a descriptor the driver polls.
    SetVringCall {
        /// Vring index.
        index: u16,
        /// What to signal.
        fd: Option<OwnedFd>,
    },
    /// What to signal when the ring breaks.
    SetVringErr {
        /// Vring index.
        index: u16,
        /// What to signal.
        fd: Option<OwnedFd>,
    },
    /// Whether the ring may carry packets.
    SetVringEnable {
        /// Vring index.
        index: u16,
        /// On or off.
        enable: bool,
    },
    /// The socket for requests of the back-end.
    SetBackendReqFd(OwnedFd),
    /// News of the front-end's IOMMU. Legal only with VIRTIO_F_ACCESS_PLATFORM, which the device knows.
    Iotlb(IotlbRequest),
    /// The MTU the guest is told, 68 to 65535.
    SetMtu(u16),
    /// Announce the guest with this MAC address by a RARP frame.
    SendRarp([u8; 6]),
    /// The VIRTIO device status.
    SetStatus(u8),
    /// Read the VIRTIO device status back. Answered with [`Response::U64`](super::Response).
    GetStatus,
    /// Disable all rings and forget the device state; the front-end stays the owner.
    ResetDevice,
    /// Make a buffer for what is in flight. Answered with [`Response::Inflight`](super::Response).
    GetInflightFd {
        /// Vrings that it is for.
        num_queues: u16,
        /// The most entries that any of them has.
        queue_size: u16,
        /// The answer is as long as the question: with padding or without.
        padded: bool,
    },
    /// Keep in this buffer what is in flight, and go on from what is in it.
    SetInflightFd(InflightDesc, OwnedFd),
    /// Read the configuration space, within its bounds. Answered with [`Response::Config`](super::Response).
    GetConfig {
        /// The first byte.
        offset: u32,
        /// Bytes.
        size: u32,
        /// For the answer to repeat.
        flags: u32,
    },
    /// Write the configuration space, within its bounds.
    SetConfig {
        /// The first byte.
        offset: u32,
        /// The bytes.
        bytes: Vec<u8>,
        /// The front-end brings them along with a guest that moves; else the driver writes.
        migration: bool,
    },
    /// Write the device's own state to this descriptor, or read it from there. Answered with
    /// [`Response::U64`](super::Response).
    SetDeviceStateFd(Transfer, OwnedFd),
    /// Whether that went well. Answered with [`Response::U64`](super::Response): zero if so.
    CheckDeviceState,
    /// A migration that may go on after the guest has begun to run here. Answered with
    /// [`Response::Fd`](super::Response): a userfaultfd.
    PostcopyAdvise,
    /// From here on regions are answered with [`Response::Regions`](super::Response): the addresses they have here. They
    /// may be used once these are acknowledged; their missing pages arrive while they are.
    PostcopyListen,
    /// The front-end has taken note of such addresses.
    PostcopyAck,
    /// All pages are there. Answered with [`Response::U64`](super::Response).
    PostcopyEnd,
}

/// A request that the session answers out of its own state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Own {
    GetFeatures,
    GetProtocolFeatures,
    SetProtocolFeatures(u64),
    GetQueueNum,
    GetMaxMemSlots,
}

/// What a decoder makes of a message.
#[derive(Debug)]
pub(super) enum Decoded {
    Session(Own),
    Device(Request),
}

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

/// Makes a typed request of a message that fits its row.
pub(super) type Decoder = fn(Parts<'_>) -> Result<Decoded, Malformed>;

/// What a decoder works on: a payload and descriptors that fit the row.
pub(super) struct Parts<'a> {
    pub(super) fields: Fields<'a>,
    pub(super) fds: Vec<OwnedFd>,
    /// How many vrings the device has.
    pub(super) vrings: u32,
}

/// "No file descriptor" in the payload of SET_VRING_KICK, CALL and ERR.
pub(super) const VRING_NOFD: u64 = 1 << 8;
/// The vring index in the same payload.
const VRING_INDEX_MASK: u64 = 0xff;
/// Writes to the used ring are to be logged. The only vring address flag.
pub const VHOST_VRING_F_LOG: u32 = 1;
/// The longest queue of VIRTIO (1.2, 2.7 and 2.8).
pub(super) const MAX_VRING_SIZE: u16 = 32768;
/// The smallest MTU of VIRTIO's network device (1.2, 5.1.4.1).
const MIN_MTU: u16 = 68;

// `Ok` in these two keeps the table's closures to one word.
pub(super) fn own(request: Own) -> Result<Decoded, Malformed> {
    Ok(Decoded::Session(request))
}

pub(super) fn device(request: Request) -> Result<Decoded, Malformed> {
    Ok(Decoded::Device(request))
}

impl Parts<'_> {
    /// Whether a request about memory is the front-end's acknowledgement and no region.
    fn is_acknowledgement(&self) -> bool {
        self.fields.left() == U64_SIZE
    }

    /// A vring index in range, from a number that is not masked or cut first.
    fn index(&self, index: u64) -> Result<u16, Malformed> {
        match u16::try_from(index) {
            Ok(narrow) if u32::from(narrow) < self.vrings => Ok(narrow),
            _ => Err(Malformed::VringIndex {
                index,
                vrings: self.vrings,
            }),
        }
    }

    /// A vring state description.
    fn vring_state(&mut self) -> Result<(u16, u32), Malformed> {
        let index = self.fields.u32()?;
        let num = self.fields.u32()?;
        Ok((self.index(index.into())?, num))
    }

    /// The payload of SET_VRING_KICK, CALL and ERR.
    fn vring_fd(mut self) -> Result<(u16, Option<OwnedFd>), Malformed> {
        let number = self.fields.u64()?;
        if number & !(VRING_INDEX_MASK | VRING_NOFD) != 0 {
            return Err(Malformed::VringFd(number));
        }
        Ok((self.index(number & VRING_INDEX_MASK)?, self.fds.pop()))
    }

    /// The one descriptor of a request whose row asks for one.
    pub(super) fn fd(&mut self) -> Result<OwnedFd, Malformed> {
        self.fds.pop().ok_or(Malformed::Fds {
            got: 0,
            min: 1,
            max: 1,
        })
    }

    /// A region that has bytes and stays within both address spaces.
    fn region(&mut self) -> Result<RegionDesc, Malformed> {
        let desc = self.fields.region()?;
        let fits = desc.size != 0
            && desc.guest.checked_add(desc.size).is_some()
            && desc.frontend.checked_add(desc.size).is_some();
        fits.then_some(desc).ok_or(Malformed::Region(desc))
    }

    /// A region to be mapped, which stays within its file's offsets too.
    fn mappable_region(&mut self) -> Result<RegionDesc, Malformed> {
        let desc = self.region()?;
        let fits = desc.mmap_offset.checked_add(desc.size).is_some();
        fits.then_some(desc).ok_or(Malformed::Region(desc))
    }
}

pub(super) fn set_features(mut parts: Parts<'_>) -> Result<Decoded, Malformed> {
    device(Request::SetFeatures(parts.fields.u64()?))
}

pub(super) fn set_protocol_features(mut parts: Parts<'_>) -> Result<Decoded, Malformed> {
    own(Own::SetProtocolFeatures(parts.fields.u64()?))
}

/// What is not zero is no acknowledgement.
pub(super) fn postcopy_ack(mut parts: Parts<'_>) -> Result<Decoded, Malformed> {
    match parts.fields.u64()? {
        0 => device(Request::PostcopyAck),
        other => Err(Malformed::Acknowledgement(other)),
    }
}

pub(super) fn set_mem_table(mut parts: Parts<'_>) -> Result<Decoded, Malformed> {
    if parts.is_acknowledgement() {
        return postcopy_ack(parts);
    }
    let _count_and_padding = parts.fields.u64()?;
    let fds = std::mem::take(&mut parts.fds);
    let regions: Result<Vec<_>, Malformed> = fds
        .into_iter()
        .map(|fd| Ok((parts.mappable_region()?, fd)))
        .collect();
    device(Request::SetMemTable(regions?))
}

pub(super) fn add_mem_reg(mut parts: Parts<'_>) -> Result<Decoded, Malformed> {
    if parts.is_acknowledgement() {
        return postcopy_ack(parts);
    }
    let _padding = parts.fields.u64()?;
    let desc = parts.mappable_region()?;
    device(Request::AddMemReg(desc, parts.fd()?))
}

pub(super) fn rem_mem_reg(mut parts: Parts<'_>) -> Result<Decoded, Malformed> {
    if parts.is_acknowledgement() {
        return postcopy_ack(parts);
    }
    let _padding = parts.fields.u64()?;
    device(Request::RemMemReg(parts.region()?))
}

pub(super) fn set_log_base(mut parts: Parts<'_>) -> Result<Decoded, Malformed> {
    let (size, offset) = (parts.fields.u64()?, parts.fields.u64()?);
    if size == 0 || offset.checked_add(size).is_none() {
        return Err(Malformed::Log { size, offset });
    }
    let fd = parts.fd()?;
    device(Request::SetLogBase { size, offset, fd })
}

pub(super) fn set_log_fd(mut parts: Parts<'_>) -> Result<Decoded, Malformed> {
    device(Request::SetLogFd(parts.fd()?))
}

pub(super) fn set_vring_num(mut parts: Parts<'_>) -> Result<Decoded, Malformed> {
    let (index, num) = parts.vring_state()?;
    match u16::try_from(num) {
        Ok(num @ 1..=MAX_VRING_SIZE) => device(Request::SetVringNum { index, num }),
        _ => Err(Malformed::VringSize(num)),
    }
}

pub(super) fn set_vring_addr(mut parts: Parts<'_>) -> Result<Decoded, Malformed> {
    let (index, flags) = parts.vring_state()?;
    if flags & !VHOST_VRING_F_LOG != 0 {
        return Err(Malformed::VringFlags(flags));
    }
    let [desc, used, avail] = [parts.fields.u64()?, parts.fields.u64()?, parts.fields.u64()?];
    device(Request::SetVringAddr(VringAddr {
        index,
        flags,
        desc: FrontendAddr(desc),
        used: FrontendAddr(used),
        avail: FrontendAddr(avail),
        log: GuestAddr(parts.fields.u64()?),
    }))
}

pub(super) fn set_vring_base(mut parts: Parts<'_>) -> Result<Decoded, Malformed> {
    let (index, base) = parts.vring_state()?;
    device(Request::SetVringBase { index, base })
}

pub(super) fn get_vring_base(mut parts: Parts<'_>) -> Result<Decoded, Malformed> {
    // The number is for the answer; what a front-end leaves in it means nothing.
    let (index, _) = parts.vring_state()?;
    device(Request::GetVringBase { index })
}

pub(super) fn set_vring_kick(parts: Parts<'_>) -> Result<Decoded, Malformed> {
    let (index, fd) = parts.vring_fd()?;
    device(Request::SetVringKick { index, fd })
}

pub(super) fn set_vring_call(parts: Parts<'_>) -> Result<Decoded, Malformed> {
    let (index, fd) = parts.vring_fd()?;
    device(Request::SetVringCall { index, fd })
}

pub(super) fn set_vring_err(parts: Parts<'_>) -> Result<Decoded, Malformed> {
    let (index, fd) = parts.vring_fd()?;
    device(Request::SetVringErr { index, fd })
}

pub(super) fn set_vring_enable(mut parts: Parts<'_>) -> Result<Decoded, Malformed> {
    match parts.vring_state()? {
        (index, 0) => device(Request::SetVringEnable { index, enable: false }),
        (index, 1) => device(Request::SetVringEnable { index, enable: true }),
        (_, other) => Err(Malformed::Enable(other)),
    }
}

pub(super) fn send_rarp(mut parts: Parts<'_>) -> Result<Decoded, Malformed> {
    // The MAC address is the first six bytes as they lie, whatever the byte order; two of padding follow.
    device(Request::SendRarp(parts.fields.bytes()?))
}

pub(super) fn net_set_mtu(mut parts: Parts<'_>) -> Result<Decoded, Malformed> {
    let mtu = parts.fields.u64()?;
    match u16::try_from(mtu) {
        Ok(mtu @ MIN_MTU..) => device(Request::SetMtu(mtu)),
        _ => Err(Malformed::Mtu(mtu)),
    }
}

pub(super) fn set_backend_req_fd(mut parts: Parts<'_>) -> Result<Decoded, Malformed> {
    let fd = parts.fds.pop().ok_or(Malformed::Fds {
        got: 0,
        min: 1,
        max: 1,
    })?;
    device(Request::SetBackendReqFd(fd))
}

pub(super) fn set_status(mut parts: Parts<'_>) -> Result<Decoded, Malformed> {
    let status = parts.fields.u64()?;
    let narrow = u8::try_from(status).map_err(|_| Malformed::Status(status))?;
    device(Request::SetStatus(narrow))
}

#[cfg(test)]
mod tests {
    use super::super::requests::row;
    use super::super::testing::{id, mem_table, numbers, sample, state, Probe};
    use super::*;

    const VRINGS: u32 = 4;

    fn decode(probe: &Probe, name: &str, payload: &[u8], fds: usize) -> Result<Decoded, Malformed> {
        let rule = row(id(name))
            .and_then(|row| row.rule.as_ref())
            .expect("a request that is handled");
        rule.decode(payload, probe.fds(fds), VRINGS)
    }

    #[test]
    fn rem_mem_reg_closes_the_descriptor_that_some_front_ends_send() {
        let probe = Probe::new("rem-fd");
        let (payload, _) = sample(id("REM_MEM_REG"));
        let request = decode(&probe, "REM_MEM_REG", &payload, 1);
        assert!(matches!(request, Ok(Decoded::Device(Request::RemMemReg(_)))));
        assert_eq!(probe.leaked(), 0, "closed while the request still lives");
    }

    #[test]
    fn a_mem_table_takes_one_to_eight_regions_with_a_descriptor_each() {
        let probe = Probe::new("mem-table");
        for count in 1..=8 {
            let fds = usize::try_from(count).expect("small");
            match decode(&probe, "SET_MEM_TABLE", &mem_table(count), fds) {
                Ok(Decoded::Device(Request::SetMemTable(regions))) => {
                    assert_eq!(regions.len(), fds);
                    assert_eq!(probe.leaked(), fds);
                    let (last, _) = regions.last().expect("a region");
                    assert_eq!(last.guest, GuestAddr(u64::from(count - 1) << 20));
                    assert_eq!(
                        last.frontend,
                        FrontendAddr(0x7f00_0000_0000 + (u64::from(count - 1) << 20))
                    );
                    assert_eq!(
                        (last.size, last.mmap_offset),
                        (1 << 20, u64::from(count - 1) << 20)
                    );
                }
                other => panic!("{count} regions: {other:?}"),
            }
        }
    }

    #[test]
    fn a_mem_table_whose_count_is_a_lie_is_refused() {
        let probe = Probe::new("mem-count");
        for count in [0, 9, 0xffff_ffff, 0x0800_0000, 0x0100_0001] {
            let mut payload = mem_table(8);
            payload.splice(..4, u32::to_ne_bytes(count));
            let result = decode(&probe, "SET_MEM_TABLE", &payload, 8).map(|_| ());
            assert_eq!(result, Err(Malformed::RegionCount(count)));
        }
        let mut payload = mem_table(8);
        payload.splice(..4, 7_u32.to_ne_bytes());
        let result = decode(&probe, "SET_MEM_TABLE", &payload, 8).map(|_| ());
        assert_eq!(
            result,
            Err(Malformed::Payload {
                got: 264,
                expected: 232
            })
        );
        assert_eq!(probe.leaked(), 0);
    }

    #[test]
    fn regions_that_are_empty_or_wrap_are_refused() {
        let probe = Probe::new("region-wrap");
        let high = u64::MAX - 0xfff;
        // guest, size, front-end, offset
        for region in [
            [0x1000, 0, 0x1000, 0],
            [high, 0x1000, 0x1000, 0],
            [0x1000, 0x1000, high, 0],
            [0x1000, 0x1000, 0x1000, high],
            [0x1000, u64::MAX, 0x1000, 0x1000],
            [1, u64::MAX, 0, 0],
        ] {
            let table = [state(1, 0), numbers(&region)].concat();
            let single = [numbers(&[0]), numbers(&region)].concat();
            for (name, payload) in [("SET_MEM_TABLE", table), ("ADD_MEM_REG", single)] {
                let result = decode(&probe, name, &payload, 1);
                assert!(
                    matches!(result, Err(Malformed::Region(_))),
                    "{name} {region:x?}: {result:?}"
                );
            }
        }
        assert_eq!(probe.leaked(), 0);
    }

    #[test]
    fn the_offset_of_a_region_to_remove_means_nothing() {
        let probe = Probe::new("rem-offset");
        let payload = numbers(&[u64::MAX, 0x1000, 0x1000, 0x1000, u64::MAX]);
        assert!(decode(&probe, "REM_MEM_REG", &payload, 0).is_ok());
        let payload = numbers(&[0, u64::MAX, 0x1000, 0x1000, 0]);
        assert!(decode(&probe, "REM_MEM_REG", &payload, 0).is_err());
    }

    #[test]
    fn a_vring_index_with_high_bits_is_refused_not_cut() {
        let probe = Probe::new("index");
        for index in [4, 0x100, 0x1_0000, 0x1_0001, 0x8000_0000, 0xffff_ffff] {
            let expected = Malformed::VringIndex {
                index: index.into(),
                vrings: VRINGS,
            };
            for name in [
                "SET_VRING_NUM",
                "SET_VRING_BASE",
                "GET_VRING_BASE",
                "SET_VRING_ENABLE",
            ] {
                let result = decode(&probe, name, &state(index, 1), 0).map(|_| ());
                assert_eq!(result, Err(expected), "{name}");
            }
            let addr = [state(index, 0), numbers(&[0; 4])].concat();
            assert_eq!(
                decode(&probe, "SET_VRING_ADDR", &addr, 0).map(|_| ()),
                Err(expected)
            );
        }
    }

    #[test]
    fn a_vring_descriptor_message_is_index_and_flag_and_nothing_else() {
        let probe = Probe::new("vring-fd");
        for name in ["SET_VRING_KICK", "SET_VRING_CALL", "SET_VRING_ERR"] {
            let ask = |number: u64, fds| decode(&probe, name, &numbers(&[number]), fds).map(|_| ());
            assert_eq!(ask(3, 1), Ok(()));
            assert_eq!(ask(0x103, 0), Ok(()));
            assert_eq!(
                ask(0x103, 1),
                Err(Malformed::Fds {
                    got: 1,
                    min: 0,
                    max: 0
                }),
                "no descriptor, and one"
            );
            assert_eq!(
                ask(3, 0),
                Err(Malformed::Fds {
                    got: 0,
                    min: 1,
                    max: 1
                })
            );
            assert_eq!(
                ask(4, 1),
                Err(Malformed::VringIndex {
                    index: 4,
                    vrings: VRINGS
                })
            );
            for bit in 9..64 {
                assert_eq!(ask(1 | 1 << bit, 1), Err(Malformed::VringFd(1 | 1 << bit)));
            }
        }
        assert_eq!(probe.leaked(), 0);
    }

    #[test]
    fn vring_requests_carry_their_values() {
        let probe = Probe::new("vring-values");
        let ask = |name, payload: &[u8], fds| match decode(&probe, name, payload, fds) {
            Ok(Decoded::Device(request)) => request,
            other => panic!("{name}: {other:?}"),
        };
        assert!(matches!(
            ask("SET_VRING_NUM", &state(2, 1024), 0),
            Request::SetVringNum { index: 2, num: 1024 }
        ));
        assert!(matches!(
            ask("SET_VRING_BASE", &state(1, 0x8003_8002), 0),
            Request::SetVringBase {
                index: 1,
                base: 0x8003_8002
            }
        ));
        assert!(matches!(
            ask("GET_VRING_BASE", &state(3, 0xdead), 0),
            Request::GetVringBase { index: 3 }
        ));
        assert!(matches!(
            ask("SET_VRING_KICK", &numbers(&[2]), 1),
            Request::SetVringKick {
                index: 2,
                fd: Some(_)
            }
        ));
        assert!(matches!(
            ask("SET_VRING_CALL", &numbers(&[0x102]), 0),
            Request::SetVringCall { index: 2, fd: None }
        ));
        assert!(matches!(
            ask("SET_VRING_ERR", &numbers(&[0]), 1),
            Request::SetVringErr {
                index: 0,
                fd: Some(_)
            }
        ));
        let Request::SetVringAddr(addr) = ask(
            "SET_VRING_ADDR",
            &[state(3, 1), numbers(&[0x10, 0x20, 0x30, 0x40])].concat(),
            0,
        ) else {
            panic!("another request");
        };
        // On the wire the used ring comes before the available ring.
        let expected = VringAddr {
            index: 3,
            flags: 1,
            desc: FrontendAddr(0x10),
            used: FrontendAddr(0x20),
            avail: FrontendAddr(0x30),
            log: GuestAddr(0x40),
        };
        assert_eq!(addr, expected);
    }

    #[test]
    fn values_out_of_range_are_refused() {
        let probe = Probe::new("values");
        let fails = |name, payload: Vec<u8>| decode(&probe, name, &payload, 0).map(|_| ()).expect_err(name);
        for num in [0, 32769, 0x1_0000, 0x1_0100, u32::MAX] {
            assert_eq!(fails("SET_VRING_NUM", state(0, num)), Malformed::VringSize(num));
        }
        for enable in [2, 0x100, 0x1_0001, u32::MAX] {
            assert_eq!(
                fails("SET_VRING_ENABLE", state(0, enable)),
                Malformed::Enable(enable)
            );
        }
        for flags in [2, 3, 0x8000_0001] {
            let payload = [state(0, flags), numbers(&[0; 4])].concat();
            assert_eq!(fails("SET_VRING_ADDR", payload), Malformed::VringFlags(flags));
        }
        for mtu in [0, 67, 65536, 0x1_0000_05dc, u64::MAX] {
            assert_eq!(fails("NET_SET_MTU", numbers(&[mtu])), Malformed::Mtu(mtu));
        }
        for status in [0x100, 0x10f, u64::MAX] {
            assert_eq!(fails("SET_STATUS", numbers(&[status])), Malformed::Status(status));
        }
    }

    #[test]
    fn values_at_the_ends_of_their_range_are_taken() {
        let probe = Probe::new("value-ends");
        for (name, payload) in [
            ("SET_VRING_NUM", state(0, 1)),
            ("SET_VRING_NUM", state(3, 32768)),
            ("SET_VRING_ENABLE", state(0, 0)),
            ("NET_SET_MTU", numbers(&[68])),
            ("NET_SET_MTU", numbers(&[65535])),
            ("SET_STATUS", numbers(&[0xff])),
        ] {
            assert!(decode(&probe, name, &payload, 0).is_ok(), "{name}");
        }
    }

    #[test]
    fn rarp_takes_the_address_as_it_lies() {
        let probe = Probe::new("rarp");
        let payload = [0x52, 0x54, 0x00, 0xaa, 0xbb, 0xcc, 0xff, 0xff];
        let request = decode(&probe, "SEND_RARP", &payload, 0);
        let Ok(Decoded::Device(Request::SendRarp(mac))) = request else {
            panic!("{request:?}")
        };
        assert_eq!(mac, [0x52, 0x54, 0x00, 0xaa, 0xbb, 0xcc]);
    }
}
