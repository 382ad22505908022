//! GET_INFLIGHT_FD and SET_INFLIGHT_FD: the description of an in-flight buffer (vhost-user, "Inflight description").

use super::decode::{device, Decoded, Parts, Request, MAX_VRING_SIZE};
use super::malformed::Malformed;
use super::message::{Fields, Short};
use crate::memory::InflightDesc;

/// Bytes of a description as the specification has it.
pub(super) const INFLIGHT_SIZE: usize = 20;
/// The same as a C compiler pads it, which is what front-ends send and wait for.
pub(super) const PADDED_INFLIGHT_SIZE: usize = 24;

fn inflight(fields: &mut Fields<'_>) -> Result<InflightDesc, Short> {
    Ok(InflightDesc {
        mmap_size: fields.u64()?,
        mmap_offset: fields.u64()?,
        num_queues: u16::from_ne_bytes(fields.bytes()?),
        queue_size: u16::from_ne_bytes(fields.bytes()?),
    })
}

/// Queues that the device has, of a size that a ring may have.
fn check(desc: InflightDesc, vrings: u32) -> Result<InflightDesc, Malformed> {
    let InflightDesc {
        num_queues,
        queue_size,
        ..
    } = desc;
    let fits = (1..=vrings).contains(&num_queues.into()) && (1..=MAX_VRING_SIZE).contains(&queue_size);
    let malformed = Malformed::Inflight {
        num_queues,
        queue_size,
        vrings,
    };
    fits.then_some(desc).ok_or(malformed)
}

pub(super) fn get_inflight_fd(mut parts: Parts<'_>) -> Result<Decoded, Malformed> {
    let desc = check(inflight(&mut parts.fields)?, parts.vrings)?;
    // A payload that ends with the fields has no padding, so the answer has none.
    let padded = parts.fields.bytes::<4>().is_ok();
    device(Request::GetInflightFd {
        num_queues: desc.num_queues,
        queue_size: desc.queue_size,
        padded,
    })
}

pub(super) fn set_inflight_fd(mut parts: Parts<'_>) -> Result<Decoded, Malformed> {
    let desc = check(inflight(&mut parts.fields)?, parts.vrings)?;
    device(Request::SetInflightFd(desc, parts.fd()?))
}

/// The payload of the answer to GET_INFLIGHT_FD.
pub(super) fn encode(desc: InflightDesc, padded: bool) -> Vec<u8> {
    let mut payload = desc.mmap_size.to_ne_bytes().to_vec();
    payload.extend(desc.mmap_offset.to_ne_bytes());
    payload.extend(desc.num_queues.to_ne_bytes());
    payload.extend(desc.queue_size.to_ne_bytes());
    payload.resize(
        if padded {
            PADDED_INFLIGHT_SIZE
        } else {
            INFLIGHT_SIZE
        },
        0,
    );
    payload
}

#[cfg(test)]
mod tests {
    use super::super::testing::{inflight, rule, Probe};
    use super::*;

    #[test]
    fn a_description_survives_the_wire_with_and_without_padding() {
        let desc = InflightDesc {
            mmap_size: 0x1122_3344_5566,
            mmap_offset: 0x1000,
            num_queues: 4,
            queue_size: 256,
        };
        for padded in [true, false] {
            let bytes = encode(desc, padded);
            assert_eq!(bytes.len(), if padded { 24 } else { 20 });
            assert_eq!(super::inflight(&mut Fields::new(&bytes)), Ok(desc));
        }
    }

    #[test]
    fn queues_that_the_device_does_not_have_are_refused() {
        let probe = Probe::new();
        for (queues, size, good) in [
            (1, 1, true),
            (4, 32768, true),
            (0, 256, false),
            (5, 256, false),
            (2, 0, false),
            (2, 32769, false),
        ] {
            for (name, fds) in [("GET_INFLIGHT_FD", 0), ("SET_INFLIGHT_FD", 1)] {
                let result = rule(name).decode(&inflight(queues, size), probe.fds(fds), 4);
                assert_eq!(result.is_ok(), good, "{name} {queues} {size}");
            }
        }
        assert_eq!(probe.leaked(), 0);
    }
}
