//! GET_CONFIG and SET_CONFIG: a part of the device's configuration space (vhost-user, "Virtio device config space").

use super::decode::{device, Decoded, Parts, Request};
use super::malformed::Malformed;
use super::message::{Fields, CONFIG_HEADER_SIZE, MAX_CONFIG};

/// `flags` of a write by the driver.
const FRONTEND: u32 = 0;
/// `flags` of a write by the front-end, which brings the space along with a guest that moves.
const MIGRATION: u32 = 1;

/// Bytes of the payload that a header asks for: the header, and as many bytes as it says.
pub(super) fn payload_size(payload: &[u8]) -> Result<usize, Malformed> {
    let mut fields = Fields::new(payload);
    let (offset, size) = (fields.u32()?, fields.u32()?);
    let end = u64::from(offset) + u64::from(size);
    match usize::try_from(size) {
        Ok(bytes @ 1..=MAX_CONFIG) if end <= MAX_CONFIG as u64 => Ok(CONFIG_HEADER_SIZE + bytes),
        _ => Err(Malformed::Config { offset, size }),
    }
}

/// Offset, bytes and flags of a payload that is as long as it says.
fn access(parts: &mut Parts<'_>) -> Result<(u32, Vec<u8>, u32), Malformed> {
    let (offset, _size, flags) = (parts.fields.u32()?, parts.fields.u32()?, parts.fields.u32()?);
    Ok((offset, parts.fields.rest().to_vec(), flags))
}

pub(super) fn get_config(mut parts: Parts<'_>) -> Result<Decoded, Malformed> {
    // What the bytes are is for the answer; what a front-end leaves in them, and in the flags, means nothing.
    let (offset, bytes, flags) = access(&mut parts)?;
    let size = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    device(Request::GetConfig { offset, size, flags })
}

pub(super) fn set_config(mut parts: Parts<'_>) -> Result<Decoded, Malformed> {
    let (offset, bytes, flags) = access(&mut parts)?;
    match flags {
        FRONTEND | MIGRATION => device(Request::SetConfig {
            offset,
            bytes,
            migration: flags == MIGRATION,
        }),
        _ => Err(Malformed::ConfigFlags(flags)),
    }
}

/// The payload of the answer to GET_CONFIG; without bytes it says that there are none.
pub(super) fn encode(offset: u32, flags: u32, bytes: &[u8]) -> Vec<u8> {
    let size = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    let header = [offset, size, flags];
    let header = header.iter().flat_map(|number| number.to_ne_bytes());
    header.chain(bytes.iter().copied()).collect()
}

#[cfg(test)]
mod tests {
    use super::super::testing::{config, rule, Probe};
    use super::*;

    #[test]
    fn an_access_is_as_long_as_it_says_and_stays_within_the_space() {
        let probe = Probe::new();
        let decode = |name, payload: &[u8]| rule(name).decode(payload, probe.fds(0), 4).map(|_| ());
        for (offset, size, good) in [
            (0, 1, true),
            (0, 256, true),
            (255, 1, true),
            (10, 2, true),
            (0, 0, false),
            (0, 257, false),
            (255, 2, false),
            (u32::MAX, 2, false),
        ] {
            let result = decode("GET_CONFIG", &config(offset, size, 0));
            assert_eq!(result.is_ok(), good, "{offset}+{size}");
        }
        let mut lie = config(0, 12, 0);
        lie.push(0);
        assert_eq!(
            decode("GET_CONFIG", &lie),
            Err(Malformed::Payload {
                got: 25,
                expected: 24
            })
        );
        assert_eq!(decode("SET_CONFIG", &config(0, 6, 1)), Ok(()));
        assert_eq!(
            decode("SET_CONFIG", &config(0, 6, 2)),
            Err(Malformed::ConfigFlags(2))
        );
    }

    #[test]
    fn an_answer_repeats_what_was_asked_and_says_how_much_it_has() {
        assert_eq!(encode(10, 0, &[5, 6]).len(), 14);
        assert_eq!(encode(10, 0, &[])[4..8], [0; 4]);
    }
}
