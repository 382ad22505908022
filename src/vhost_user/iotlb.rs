//! IOTLB messages (vhost-user, "IOMMU support"): what both sides say with a `struct vhost_iotlb_msg`.

use std::mem::size_of;

use memoffset::offset_of;

use super::decode::{device, Decoded, Parts, Request};
use super::malformed::Malformed;
use crate::memory::{Access, FrontendAddr, GuestAddr, IovaRange, Miss, Translation};

/// `struct vhost_iotlb_msg`. Never filled from the wire: it states the layout.
#[repr(C)]
struct IotlbLayout {
    iova: u64,
    size: u64,
    uaddr: u64,
    perm: u8,
    kind: u8,
}

/// Payload bytes of an IOTLB message, padding included.
pub const IOTLB_SIZE: usize = size_of::<IotlbLayout>();

const _: () = {
    assert!(IOTLB_SIZE == 32);
    assert!(offset_of!(IotlbLayout, iova) == 0 && offset_of!(IotlbLayout, size) == 8);
    assert!(offset_of!(IotlbLayout, uaddr) == 16);
    assert!(offset_of!(IotlbLayout, perm) == 24 && offset_of!(IotlbLayout, kind) == 25);
};

/// `VHOST_IOTLB_MISS`: the back-end asks for a translation.
const MISS: u8 = 1;
/// `VHOST_IOTLB_UPDATE`: the front-end tells one.
const UPDATE: u8 = 2;
/// `VHOST_IOTLB_INVALIDATE`: the front-end takes some back.
const INVALIDATE: u8 = 3;
/// `VHOST_IOTLB_ACCESS_FAIL`: the back-end was not allowed what it had to do.
const ACCESS_FAIL: u8 = 4;

/// What a front-end says of its IOMMU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IotlbRequest {
    /// These addresses lead there, whatever they led to before.
    Update(Translation),
    /// These addresses lead nowhere until told again; answered when no ring uses them any more.
    Invalidate(IovaRange),
}

/// Reads an IOTLB message of the front-end.
pub(super) fn iotlb_msg(mut parts: Parts<'_>) -> Result<Decoded, Malformed> {
    let (iova, size) = (GuestAddr(parts.fields.u64()?), parts.fields.u64()?);
    let target = FrontendAddr(parts.fields.u64()?);
    let [perm, kind, ..] = parts.fields.bytes::<8>()?;
    let range = IovaRange::new(iova, size);
    let malformed = Malformed::Iotlb {
        iova: iova.0,
        size,
        perm,
        kind,
    };
    let request = match (kind, range, Access::from_perm(perm)) {
        (UPDATE, Some(range), Some(access)) if target.checked_add(size - 1).is_some() => {
            IotlbRequest::Update(Translation {
                iova: range,
                target,
                access,
            })
        }
        (INVALIDATE, Some(range), _) => IotlbRequest::Invalidate(range),
        // The whole address space has more bytes than 64 bits count: QEMU, which adds 1 to a mask, then says 0.
        (INVALIDATE, None, _) if size == 0 && iova.0 == 0 => IotlbRequest::Invalidate(IovaRange::ALL),
        _ => return Err(malformed),
    };
    device(Request::Iotlb(request))
}

/// The payload that asks for a translation.
pub(super) fn miss(wanted: Miss) -> Vec<u8> {
    encode(MISS, wanted)
}

/// The payload that complains of one.
pub(super) fn access_fail(wanted: Miss) -> Vec<u8> {
    encode(ACCESS_FAIL, wanted)
}

fn encode(kind: u8, wanted: Miss) -> Vec<u8> {
    let numbers = [wanted.iova.0, 0, 0].map(u64::to_ne_bytes);
    let mut payload = numbers.concat();
    payload.extend([wanted.access.perm(), kind]);
    payload.resize(IOTLB_SIZE, 0);
    payload
}

#[cfg(test)]
mod tests {
    use super::super::testing::{iotlb, rule};
    use super::*;

    fn decode(payload: &[u8]) -> Result<IotlbRequest, Malformed> {
        match rule("IOTLB_MSG").decode(payload, vec![], 4)? {
            Decoded::Device(Request::Iotlb(request)) => Ok(request),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn an_update_and_an_invalidate_are_read_as_they_were_written() {
        assert_eq!(
            decode(&iotlb(0x1000, 0x2000, 0x7f00_0000, 3, UPDATE)),
            Ok(IotlbRequest::Update(Translation {
                iova: IovaRange::new(GuestAddr(0x1000), 0x2000).expect("a range"),
                target: FrontendAddr(0x7f00_0000),
                access: Access::ReadWrite,
            }))
        );
        for perm in [0, 1, 3, 0xff] {
            assert_eq!(
                decode(&iotlb(0x1000, 0x1000, 0, perm, INVALIDATE)),
                Ok(IotlbRequest::Invalidate(
                    IovaRange::new(GuestAddr(0x1000), 0x1000).expect("a range")
                ))
            );
        }
    }

    #[test]
    fn an_invalidate_of_two_to_the_sixty_four_addresses_is_one_of_all() {
        assert_eq!(
            decode(&iotlb(0, 0, 0, 0, INVALIDATE)),
            Ok(IotlbRequest::Invalidate(IovaRange::ALL))
        );
        assert!(decode(&iotlb(0x1000, 0, 0, 0, INVALIDATE)).is_err());
    }

    #[test]
    fn empty_and_wrapping_ranges_odd_permissions_and_the_back_ends_own_types_are_refused() {
        let bad = [
            (0x1000, 0, 0x1000, 3, UPDATE),
            (u64::MAX, 2, 0x1000, 3, UPDATE),
            (0x1000, u64::MAX, 0x1000, 3, UPDATE),
            (0x1000, 0x1000, u64::MAX - 0xffe, 3, UPDATE),
            (0x1000, 0x1000, 0x1000, 0, UPDATE),
            (0x1000, 0x1000, 0x1000, 4, UPDATE),
            (u64::MAX, 2, 0, 0, INVALIDATE),
            (0x1000, 0x1000, 0x1000, 3, MISS),
            (0x1000, 0x1000, 0x1000, 3, ACCESS_FAIL),
            (0x1000, 0x1000, 0x1000, 3, 0),
            // The batches of the kernel's vhost.
            (0x1000, 0x1000, 0x1000, 3, 5),
            (0x1000, 0x1000, 0x1000, 3, 0xff),
        ];
        for (iova, size, target, perm, kind) in bad {
            let result = decode(&iotlb(iova, size, target, perm, kind));
            assert_eq!(
                result,
                Err(Malformed::Iotlb {
                    iova,
                    size,
                    perm,
                    kind
                })
            );
        }
        assert!(decode(&iotlb(0x1000, 0x1000, u64::MAX - 0xfff, 3, UPDATE)).is_ok());
    }

    #[test]
    fn a_miss_says_where_and_what_for() {
        let wanted = Miss {
            iova: GuestAddr(0x1234_5000),
            access: Access::Write,
        };
        assert_eq!(miss(wanted), iotlb(0x1234_5000, 0, 0, 2, MISS));
        assert_eq!(access_fail(wanted), iotlb(0x1234_5000, 0, 0, 2, ACCESS_FAIL));
    }
}
