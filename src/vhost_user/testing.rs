//! What the tests of this folder share: well-formed samples of every request, a device that says yes, and a
//! file whose open descriptors can be counted.

use std::fs::{self, File};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;

use super::decode::Request;
use super::message::{Flags, Header, Message};
use super::requests::{row, Rule, TABLE};
use super::session::{Device, Offer, Refusal, Response};
use super::ProtocolFeatures;
use crate::memory::InflightDesc;

/// An offer of everything, two queue pairs.
pub(super) const OFFER: Offer = Offer {
    features: 0xd_4000_0000,
    protocol_features: ProtocolFeatures::SUPPORTED.0,
    queue_pairs: 2,
    mem_slots: 509,
};

pub(super) const PLAIN: Flags = Flags(0x1);
pub(super) const NEED_REPLY: Flags = Flags(0x9);

/// The number of a request by its name behind `VHOST_USER_`.
pub(super) fn id(name: &str) -> u32 {
    let row = TABLE
        .iter()
        .find(|row| row.name.strip_prefix("VHOST_USER_") == Some(name));
    row.unwrap_or_else(|| panic!("{name} is in the table")).id
}

/// The rule of a request by the same name.
pub(super) fn rule(name: &str) -> &'static Rule {
    let rule = row(id(name)).and_then(|row| row.rule.as_ref());
    rule.unwrap_or_else(|| panic!("{name} is handled"))
}

/// Number, name and rule of each request that is handled.
pub(super) fn handled() -> impl Iterator<Item = (u32, &'static str, &'static Rule)> {
    TABLE
        .iter()
        .filter_map(|row| Some((row.id, row.name, row.rule.as_ref()?)))
}

/// A payload out of 64-bit numbers.
pub(super) fn numbers(numbers: &[u64]) -> Vec<u8> {
    numbers.iter().flat_map(|number| number.to_ne_bytes()).collect()
}

/// A vring state description.
pub(super) fn state(index: u32, num: u32) -> Vec<u8> {
    [index, num]
        .iter()
        .flat_map(|number| number.to_ne_bytes())
        .collect()
}

/// An IOTLB message.
pub(super) fn iotlb(iova: u64, size: u64, uaddr: u64, perm: u8, kind: u8) -> Vec<u8> {
    [numbers(&[iova, size, uaddr]), vec![perm, kind, 0, 0, 0, 0, 0, 0]].concat()
}

/// An in-flight description, padded, of a buffer that is long enough.
pub(super) fn inflight(queues: u16, size: u16) -> Vec<u8> {
    let [low, high] = [queues, size].map(u16::to_ne_bytes);
    [numbers(&[1 << 20, 0]), low.to_vec(), high.to_vec(), vec![0; 4]].concat()
}

/// A part of the configuration space, all zero.
pub(super) fn config(offset: u32, size: u32, flags: u32) -> Vec<u8> {
    let mut payload = [state(offset, size), flags.to_ne_bytes().to_vec()].concat();
    payload.resize(12 + usize::try_from(size).expect("small"), 0);
    payload
}

/// A memory regions description of `count` adjacent regions.
pub(super) fn mem_table(count: u32) -> Vec<u8> {
    let mut payload = state(count, 0);
    for region in 0..u64::from(count) {
        payload.extend(numbers(&[
            region << 20,
            1 << 20,
            0x7f00_0000_0000 + (region << 20),
            region << 20,
        ]));
    }
    payload
}

/// A well-formed payload of a request, and how many descriptors go with it.
pub(super) fn sample(id: u32) -> (Vec<u8>, usize) {
    match id {
        0 => (numbers(&[0]), 0),
        2 => (numbers(&[0x1_4000_0000]), 0),
        5 => (mem_table(2), 2),
        6 => (numbers(&[0x1000, 0]), 1),
        7 => (Vec::new(), 1),
        8..=10 if id != 9 => (state(1, 256), 0),
        9 => ([state(1, 0), numbers(&[0x1000, 0x3000, 0x2000, 0])].concat(), 0),
        11 => (state(1, 0), 0),
        12..=14 => (numbers(&[1]), 1),
        16 => (numbers(&[ProtocolFeatures::SUPPORTED.0]), 0),
        18 => (state(1, 1), 0),
        19 => (vec![0x52, 0x54, 0, 1, 2, 3, 0, 0], 0),
        20 => (numbers(&[1500]), 0),
        21 => (Vec::new(), 1),
        22 => (iotlb(0x1000, 0x1000, 0x7f00_0000_0000, 3, 2), 0),
        24 | 25 => (config(0, 12, 0), 0),
        31 => (inflight(2, 256), 0),
        32 => (inflight(2, 256), 1),
        42 => (state(0, 0), 1),
        37 => (numbers(&[1, 0x10_0000, 0x1000, 0x7f00_0000_0000, 0]), 1),
        38 => (numbers(&[1, 0x10_0000, 0x1000, 0x7f00_0000_0000, 0]), 0),
        39 => (numbers(&[0xf]), 0),
        _ => (Vec::new(), 0),
    }
}

/// A message with the header that fits its payload.
pub(super) fn message(request: u32, flags: Flags, payload: Vec<u8>, fds: Vec<OwnedFd>) -> Message {
    let size = u32::try_from(payload.len()).expect("a short payload");
    Message {
        header: Header { request, flags, size },
        payload,
        fds,
        defect: None,
    }
}

/// The bytes of such a message.
pub(super) fn wire(request: u32, flags: Flags, payload: &[u8]) -> Vec<u8> {
    let size = u32::try_from(payload.len()).expect("a short payload");
    [&Header { request, flags, size }.encode(), payload].concat()
}

/// Says yes to everything, or no, and remembers how often it was asked.
#[derive(Default)]
pub(super) struct Fake {
    pub(super) refuses: bool,
    pub(super) answers: Option<fn() -> Response>,
    pub(super) seen: Vec<Request>,
}

impl Device for Fake {
    fn handle(&mut self, request: Request) -> Result<Response, Refusal> {
        if self.refuses {
            return Err(Refusal::new("not today"));
        }
        let response = match &request {
            Request::GetVringBase { index } => Response::VringState {
                index: *index,
                num: 0x8005_8004,
            },
            Request::GetStatus => Response::U64(0xf),
            Request::GetInflightFd { padded, .. } => Response::Inflight {
                desc: InflightDesc {
                    mmap_size: 64,
                    mmap_offset: 0,
                    num_queues: 1,
                    queue_size: 1,
                },
                padded: *padded,
                fd: File::open("/dev/null").expect("a file").into(),
            },
            Request::GetConfig { offset, size, flags } => Response::Config {
                offset: *offset,
                flags: *flags,
                bytes: vec![7; usize::try_from(*size).expect("small")],
            },
            Request::SetDeviceStateFd(..) => Response::U64(0x100),
            Request::CheckDeviceState => Response::U64(0),
            Request::PostcopyAdvise => Response::Fd(Probe::new().fd()),
            Request::PostcopyEnd => Response::U64(0),
            _ => Response::Done,
        };
        self.seen.push(request);
        Ok(self.answers.map_or(response, |answer| answer()))
    }
}

/// A file without a name, of which this process counts its own descriptors, whatever other tests have open.
pub(super) struct Probe {
    file: File,
}

impl Probe {
    pub(super) fn new() -> Probe {
        let file = tempfile::tempfile().expect("a temporary file");
        Probe { file }
    }

    /// Another descriptor of the file.
    pub(super) fn fd(&self) -> OwnedFd {
        self.file.as_fd().try_clone_to_owned().expect("a descriptor")
    }

    /// `count` more of them.
    pub(super) fn fds(&self, count: usize) -> Vec<OwnedFd> {
        (0..count).map(|_| self.fd()).collect()
    }

    /// Descriptors of the file that are open, the probe's own not counted.
    pub(super) fn leaked(&self) -> usize {
        let identity = |metadata: &fs::Metadata| (metadata.dev(), metadata.ino());
        let probe = identity(&self.file.metadata().expect("a file"));
        let links = fs::read_dir("/proc/self/fd").expect("/proc").flatten();
        let open = links.filter_map(|link| fs::metadata(link.path()).ok());
        open.filter(|metadata| identity(metadata) == probe).count() - 1
    }
}
