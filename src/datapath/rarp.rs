//! The announcement of a guest after its migration, for drivers that cannot announce themselves
//! (VHOST_USER_SEND_RARP): a reverse ARP request from its address (RFC 903).

/// Bytes in the frame: the least that Ethernet allows, checksum included, as rte_vhost sends it.
const FRAME: usize = 64;

/// The frame that tells every bridge where `mac` is.
pub(super) fn frame(mac: [u8; 6]) -> [u8; FRAME] {
    let broadcast = [0xff_u8; 6];
    let nobody = [0_u8; 4];
    let fields: [&[u8]; 8] = [
        &broadcast,
        &mac,
        &0x8035_u16.to_be_bytes(), // RARP
        // Ethernet and IPv4, of 6 and 4 bytes; operation 3: what is the address of the one named below?
        &[0, 1, 0x08, 0x00, 6, 4, 0, 3],
        &mac,
        &nobody,
        &mac,
        &nobody,
    ];
    let mut frame = [0; FRAME];
    for (to, from) in frame.iter_mut().zip(fields.into_iter().flatten()) {
        *to = *from;
    }
    frame
}

/// The address that a frame comes from, if it can be a guest's.
pub(super) fn source(frame: &[u8]) -> Option<[u8; 6]> {
    let mac: [u8; 6] = *frame.get(6..)?.first_chunk()?;
    let [first, ..] = mac;
    (first & 1 == 0 && mac != [0; 6]).then_some(mac)
}

#[cfg(test)]
mod tests {
    #[test]
    fn announces_the_guest_to_everybody() {
        let mac = [0x52, 0x54, 0, 1, 2, 3];
        let frame = super::frame(mac);
        assert_eq!(frame[..6], [0xff; 6]);
        assert_eq!(frame[6..12], mac);
        assert_eq!(frame[12..22], [0x80, 0x35, 0, 1, 8, 0, 6, 4, 0, 3]);
        assert_eq!(frame[22..28], mac);
        assert_eq!(frame[32..38], mac);
        assert!(frame[38..].iter().all(|byte| *byte == 0));
    }
}
