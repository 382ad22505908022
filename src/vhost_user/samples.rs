//! Well-formed samples of every request, for tests of any size: what hostile ones start from.

use super::message::{Flags, Header};
use super::requests::{row, Rule, TABLE};
use super::ProtocolFeatures;

/// The flags of a request that asks for no answer.
pub const PLAIN: Flags = Flags(0x1);
/// The flags of one that asks for an acknowledgement.
pub const NEED_REPLY: Flags = Flags(0x9);

/// The number of a request by its name behind `VHOST_USER_`.
pub fn id(name: &str) -> u32 {
    let row = TABLE
        .iter()
        .find(|row| row.name.strip_prefix("VHOST_USER_") == Some(name));
    row.unwrap_or_else(|| panic!("{name} is in the table")).id
}

/// The rule of a request by the same name.
pub fn rule(name: &str) -> &'static Rule {
    let rule = row(id(name)).and_then(|row| row.rule.as_ref());
    rule.unwrap_or_else(|| panic!("{name} is handled"))
}

/// Number, name and rule of each request that is handled.
pub fn handled() -> impl Iterator<Item = (u32, &'static str, &'static Rule)> {
    TABLE
        .iter()
        .filter_map(|row| Some((row.id, row.name, row.rule.as_ref()?)))
}

/// A payload out of 64-bit numbers.
pub fn numbers(numbers: &[u64]) -> Vec<u8> {
    numbers.iter().flat_map(|number| number.to_ne_bytes()).collect()
}

/// A vring state description.
pub fn state(index: u32, num: u32) -> Vec<u8> {
    [index, num]
        .iter()
        .flat_map(|number| number.to_ne_bytes())
        .collect()
}

/// An IOTLB message.
pub fn iotlb(iova: u64, size: u64, uaddr: u64, perm: u8, kind: u8) -> Vec<u8> {
    [numbers(&[iova, size, uaddr]), vec![perm, kind, 0, 0, 0, 0, 0, 0]].concat()
}

/// An in-flight description, padded, of a buffer that is long enough.
pub fn inflight(queues: u16, size: u16) -> Vec<u8> {
    let [low, high] = [queues, size].map(u16::to_ne_bytes);
    [numbers(&[1 << 20, 0]), low.to_vec(), high.to_vec(), vec![0; 4]].concat()
}

/// A part of the configuration space, all zero.
pub fn config(offset: u32, size: u32, flags: u32) -> Vec<u8> {
    let mut payload = [state(offset, size), flags.to_ne_bytes().to_vec()].concat();
    payload.resize(12 + usize::try_from(size).expect("small"), 0);
    payload
}

/// A memory regions description of `count` adjacent regions.
pub fn mem_table(count: u32) -> Vec<u8> {
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
pub fn sample(id: u32) -> (Vec<u8>, usize) {
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

/// The bytes of a message with the header that fits its payload.
pub fn wire(request: u32, flags: Flags, payload: &[u8]) -> Vec<u8> {
    let size = u32::try_from(payload.len()).expect("a short payload");
    [&Header { request, flags, size }.encode(), payload].concat()
}
