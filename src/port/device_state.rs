//! What a port itself knows of its guest, on its way from one back-end to another (SET_DEVICE_STATE_FD).
//!
//! Rings and memory are not part of it: their state moves with the guest's memory and the vring bases. What is left is what
//! the front-end said once and may not say again, and who the guest is: the port that it comes to announces it at once.

use std::os::fd::OwnedFd;

use rustix::fs::{fcntl_getfl, fcntl_setfl, fstat, FileType, OFlags};
use rustix::io::{retry_on_intr, Errno};

use super::announce::Guest;

/// What it begins with, so that nobody takes another device's for it.
const MAGIC: [u8; 8] = *b"ovsvhost";
const VERSION: u16 = 1;
/// Bytes of it.
const SIZE: usize = 26;

/// A port's own state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct DeviceState {
    /// What NET_SET_MTU said.
    pub(super) mtu: Option<u16>,
    /// The address in the configuration space, if a front-end brought one along.
    pub(super) mac: Option<[u8; 6]>,
    /// The guest that was heard on the port, and where its transmitq was left.
    pub(super) guest: Option<Guest>,
}

/// Why a state does not move.
#[derive(Debug, thiserror::Error)]
pub(super) enum StateError {
    #[error("a vring runs")]
    Running,
    #[error("nothing was to be loaded or saved")]
    Nothing,
    /// Anything else could make the control thread wait.
    #[error("the descriptor is neither a pipe nor a socket")]
    Channel,
    #[error("{0} of {SIZE} bytes were taken")]
    Short(usize),
    #[error("{0} bytes are no state of this device, which has {SIZE}")]
    Size(usize),
    #[error("it is another device's, or of another version")]
    Foreign,
    #[error("its end has not come")]
    Unfinished,
    #[error(transparent)]
    Io(#[from] Errno),
}

impl DeviceState {
    fn to_bytes(self) -> [u8; SIZE] {
        let [m0, m1, m2, m3, m4, m5, m6, m7] = MAGIC;
        let [v0, v1] = VERSION.to_le_bytes();
        let [t0, t1] = self.mtu.unwrap_or(0).to_le_bytes();
        let [a0, a1, a2, a3, a4, a5] = self.mac.unwrap_or_default();
        let nobody = Guest { mac: [0; 6], left: 0 };
        let Guest { mac, left } = self.guest.unwrap_or(nobody);
        let ([g0, g1, g2, g3, g4, g5], [l0, l1]) = (mac, left.to_le_bytes());
        [
            m0, m1, m2, m3, m4, m5, m6, m7, v0, v1, t0, t1, a0, a1, a2, a3, a4, a5, g0, g1, g2, g3, g4, g5,
            l0, l1,
        ]
    }

    fn from_bytes(bytes: &[u8]) -> Result<DeviceState, StateError> {
        let bytes: [u8; SIZE] = bytes.try_into().map_err(|_| StateError::Size(bytes.len()))?;
        let [.., t0, t1, a0, a1, a2, a3, a4, a5, g0, g1, g2, g3, g4, g5, l0, l1] = bytes;
        let (mtu, mac) = (u16::from_le_bytes([t0, t1]), [a0, a1, a2, a3, a4, a5]);
        let guest = Guest {
            mac: [g0, g1, g2, g3, g4, g5],
            left: u16::from_le_bytes([l0, l1]),
        };
        let state = DeviceState {
            mtu: (mtu != 0).then_some(mtu),
            mac: (mac != [0; 6]).then_some(mac),
            guest: (guest.mac != [0; 6]).then_some(guest),
        };
        // What comes out as it went in has the right beginning, too.
        (state.to_bytes() == bytes)
            .then_some(state)
            .ok_or(StateError::Foreign)
    }

    /// Writes it to `channel`, whose end is the end of the state.
    pub(super) fn save(self, channel: OwnedFd) -> Result<(), StateError> {
        let channel = patient(channel)?;
        match retry_on_intr(|| rustix::io::write(&channel, &self.to_bytes()))? {
            SIZE => Ok(()),
            short => Err(StateError::Short(short)),
        }
    }
}

/// A transfer that was begun, until the front-end asks how it went.
#[derive(Default)]
pub(super) enum Moving {
    #[default]
    No,
    /// Out; this is how it went.
    Saved(Result<(), StateError>),
    /// In, from this channel, which the front-end closes when all of it is there.
    Loading(OwnedFd),
}

impl Moving {
    /// A state is to come in by `channel`.
    pub(super) fn load(channel: OwnedFd) -> Result<Moving, StateError> {
        patient(channel).map(Moving::Loading)
    }

    /// How it went. A state that came in is returned.
    pub(super) fn check(self) -> Result<Option<DeviceState>, StateError> {
        match self {
            Moving::No => Err(StateError::Nothing),
            Moving::Saved(outcome) => outcome.map(|()| None),
            Moving::Loading(channel) => {
                read_all(&channel).and_then(|bytes| DeviceState::from_bytes(&bytes).map(Some))
            }
        }
    }
}

/// All that is in `channel`, as long as that could be a state.
fn read_all(channel: &OwnedFd) -> Result<Vec<u8>, StateError> {
    let mut bytes = Vec::new();
    while bytes.len() <= SIZE {
        let mut piece = [0; SIZE + 1];
        match rustix::io::read(channel, &mut piece) {
            Ok(0) => break,
            Ok(len) => bytes.extend_from_slice(&piece[..len]),
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => return Err(StateError::Unfinished),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(bytes)
}

/// A channel that cannot make anybody wait.
fn patient(channel: OwnedFd) -> Result<OwnedFd, StateError> {
    let kind = FileType::from_raw_mode(fstat(&channel)?.st_mode);
    if !matches!(kind, FileType::Fifo | FileType::Socket) {
        return Err(StateError::Channel);
    }
    fcntl_setfl(&channel, fcntl_getfl(&channel)? | OFlags::NONBLOCK)?;
    Ok(channel)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    const STATE: DeviceState = DeviceState {
        mtu: Some(9000),
        mac: Some([2, 0, 0, 0, 0, 1]),
        guest: Some(Guest {
            mac: [2, 0, 0, 0, 0, 2],
            left: 0x8003,
        }),
    };

    #[test]
    fn a_state_arrives_as_it_left() {
        for state in [STATE, DeviceState::default()] {
            let (mut reader, writer) = std::io::pipe().unwrap();
            state.save(writer.into()).unwrap();
            let mut bytes = Vec::new();
            reader.read_to_end(&mut bytes).unwrap();
            let (reader, mut writer) = std::io::pipe().unwrap();
            let moving = Moving::load(reader.into()).unwrap();
            writer.write_all(&bytes).unwrap();
            drop(writer);
            assert_eq!(moving.check().unwrap(), Some(state));
        }
    }

    #[test]
    fn what_is_no_state_of_ours_is_refused() {
        let good = STATE.to_bytes();
        let mut newer = good;
        newer[8] = 2;
        let long = [good.as_slice(), &[0]].concat();
        for bytes in [&newer[..], &good[..25], &long, &[], &[0; 26], &[7; 5000]] {
            let (reader, mut writer) = std::io::pipe().unwrap();
            let moving = Moving::load(reader.into()).unwrap();
            writer.write_all(bytes).unwrap();
            drop(writer);
            assert!(moving.check().is_err(), "{} bytes", bytes.len());
        }
    }

    #[test]
    fn nobody_waits_for_the_other_end() {
        let (reader, mut writer) = std::io::pipe().unwrap();
        let moving = Moving::load(reader.into()).unwrap();
        writer.write_all(&STATE.to_bytes()).unwrap();
        assert!(matches!(moving.check(), Err(StateError::Unfinished)));

        let (_reader, mut writer) = std::io::pipe().unwrap();
        let other = writer.try_clone().unwrap();
        patient(other.into()).unwrap();
        while writer.write(&[0; 4096]).is_ok() {}
        let outcome = STATE.save(writer.into());
        assert!(outcome.is_err(), "a pipe that is full");
        let file = tempfile::tempfile().unwrap();
        assert!(matches!(STATE.save(file.into()), Err(StateError::Channel)));
        assert!(matches!(Moving::No.check(), Err(StateError::Nothing)));
    }
}
