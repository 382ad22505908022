//! From bytes to requests: values that are in range, or the reason why not.
//!
//! A decoder gets a payload and descriptors that fit the request's [row](super::requests::TABLE). What it
//! returns is checked for good: nothing behind it masks an index or asks whether a flag is 0 or 1.

use std::os::fd::OwnedFd;

use super::iotlb::IotlbRequest;
use super::malformed::Malformed;
use super::message::{Fields, VringAddr, U64_SIZE};
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
mod tests;
