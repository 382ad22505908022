//! The configuration space of a network device (VIRTIO 1.2, 5.1.4), as far as a switch port knows it.

use super::MAX_QUEUE_PAIRS;

/// Bytes of `struct virtio_net_config`; what a front-end reads behind them is zero.
const SIZE: usize = 24;
/// Where the fields are.
const MAC: usize = 0;
const STATUS: usize = 6;
const MAX_PAIRS: usize = 8;
const MTU: usize = 10;
const SPEED: usize = 12;
const DUPLEX: usize = 16;
/// VIRTIO_NET_S_LINK_UP.
const LINK_UP: u16 = 1;
/// Speed and duplex that nobody knows.
const UNKNOWN: u8 = 0xff;

/// The space of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ConfigSpace {
    /// The guest's address, if a front-end brought one along. A port has none to give.
    pub(super) mac: Option<[u8; 6]>,
    /// The largest frame that reaches the guest, without its Ethernet header.
    pub(super) mtu: u16,
}

impl ConfigSpace {
    fn bytes(&self) -> [u8; SIZE] {
        let mut bytes = [0; SIZE];
        let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
        put(MAC, &self.mac.unwrap_or_default());
        put(STATUS, &LINK_UP.to_le_bytes());
        put(MAX_PAIRS, &MAX_QUEUE_PAIRS.to_le_bytes());
        put(MTU, &self.mtu.to_le_bytes());
        put(SPEED, &[UNKNOWN; 4]);
        put(DUPLEX, &[UNKNOWN]);
        bytes
    }

    /// `size` bytes from `offset` on.
    pub(super) fn read(&self, offset: u32, size: u32) -> Vec<u8> {
        let from = usize::try_from(offset).unwrap_or(SIZE);
        let size = usize::try_from(size).unwrap_or(0);
        let rest = self.bytes().into_iter().skip(from);
        rest.chain(std::iter::repeat(0)).take(size).collect()
    }

    /// Takes what a front-end brings along with a guest that moves: its MAC address. All else must be as it is here.
    ///
    /// # Errors
    ///
    /// The first byte that differs.
    pub(super) fn bring(&mut self, offset: u32, bytes: &[u8]) -> Result<(), u32> {
        let mut mac = self.mac.unwrap_or_default();
        let from = usize::try_from(offset).unwrap_or(SIZE);
        if let (MAC, Some(brought)) = (from, bytes.first_chunk()) {
            mac = *brought;
        }
        let brought = ConfigSpace {
            mac: (mac != [0; 6]).then_some(mac),
            ..*self
        };
        let size = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        let here = brought.read(offset, size);
        match (offset..)
            .zip(bytes.iter().zip(&here))
            .find(|(_, (theirs, ours))| theirs != ours)
        {
            Some((at, _)) => Err(at),
            None => {
                *self = brought;
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPACE: ConfigSpace = ConfigSpace { mac: None, mtu: 1500 };

    #[test]
    fn fields_are_where_the_specification_has_them() {
        let space = ConfigSpace {
            mac: Some([2, 3, 4, 5, 6, 7]),
            mtu: 9000,
        };
        assert_eq!(space.read(0, 12), [2, 3, 4, 5, 6, 7, 1, 0, 128, 0, 0x28, 0x23]);
        assert_eq!(space.read(12, 6), [0xff, 0xff, 0xff, 0xff, 0xff, 0]);
        assert_eq!(space.read(10, 2), 9000_u16.to_le_bytes());
        assert_eq!(space.read(250, 6), [0; 6]);
        assert_eq!(space.read(0, 256).len(), 256);
        assert_eq!(SPACE.read(0, 6), [0; 6], "an address that nobody knows");
    }

    #[test]
    fn a_guest_that_moves_brings_its_address_and_nothing_else() {
        let mac = [2, 0, 0, 0, 0, 9];
        let mut space = SPACE;
        assert_eq!(space.bring(0, &mac), Ok(()));
        assert_eq!(space.mac, Some(mac));
        let all = space.read(0, 24);
        assert_eq!(space.bring(0, &all), Ok(()));
        assert_eq!(space.bring(10, &9000_u16.to_le_bytes()), Err(10));
        let mut other = all.clone();
        other[..6].copy_from_slice(&[2, 0, 0, 0, 0, 8]);
        other[10] ^= 1;
        assert_eq!(space.bring(0, &other), Err(10));
        assert_eq!(space.mac, Some(mac), "all or nothing");
        assert_eq!(space.bring(2, &[9]), Err(2));
    }
}
