//! vhost-user messages byte by byte, for front-ends that say what rust-vmm's does not.

use std::io::Read;
use std::os::unix::net::UnixStream;

/// The flags of a request that asks for no acknowledgement.
pub const VERSION: u32 = 0x1;

pub fn message(request: u32, flags: u32, payload: &[u8]) -> Vec<u8> {
    let size = u32::try_from(payload.len()).expect("short");
    let header = [request, flags, size].map(u32::to_ne_bytes).concat();
    [&header, payload].concat()
}

/// The payload of the reply to `request`. QEMU takes no other flags than exactly 0x5.
pub fn reply(stream: &mut UnixStream, request: u32) -> [u8; 8] {
    let mut bytes = [0; 20];
    stream.read_exact(&mut bytes).expect("a reply");
    let word = |at: usize| u32::from_ne_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
    assert_eq!([word(0), word(4), word(8)], [request, 0x5, 8]);
    bytes[12..].try_into().expect("eight bytes")
}
