//! What the unit tests of this folder share: a device that says yes, and a file whose open descriptors can be counted.
//! Messages come from [`samples`](super::samples).

use std::fs::{self, File};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;

use super::decode::Request;
use super::message::{Flags, Header, Message};
pub(super) use super::samples::*;
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
