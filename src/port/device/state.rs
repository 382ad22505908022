//! What the device has beside rings and memory, and what of it goes to the front-end and comes back: the configuration
//! space, the state of its own, what was in flight.

use std::os::fd::OwnedFd;

use log::Level;

use crate::memory::InflightDesc;
use crate::port::config_space::ConfigSpace;
use crate::port::device_state::{DeviceState, Moving, StateError};
use crate::port::in_flight::InFlight;
use crate::vhost_user::{BackendRequest, Refusal, Response, Transfer};

use super::PortDevice;

impl PortDevice {
    pub(super) fn config_space(&self) -> ConfigSpace {
        ConfigSpace {
            mac: self.mac,
            mtu: self.port.mtu(),
        }
    }

    pub(super) fn set_config(
        &mut self,
        offset: u32,
        bytes: &[u8],
        migration: bool,
    ) -> Result<Response, Refusal> {
        if !migration {
            return Err(Refusal::new(
                "the driver may write no field of the configuration space",
            ));
        }
        let mut space = self.config_space();
        space.bring(offset, bytes).map_err(|at| {
            Refusal::new(format!(
                "the guest's configuration space differs from this port's at byte {at}"
            ))
        })?;
        self.mac = space.mac;
        // What it brings it knows.
        self.config_known.mac = space.mac;
        Ok(Response::Done)
    }

    /// What the front-end is to be told if the configuration space is not as it last heard. Once for each time.
    pub(in crate::port) fn config_change(&mut self) -> Option<BackendRequest> {
        let now = self.config_space();
        let before = std::mem::replace(&mut self.config_known, now);
        (before != now).then_some(BackendRequest::ConfigChange)
    }

    /// Begins to move the device's own state. Answers as the specification says: an error in the lower bits, and that
    /// no descriptor comes with the answer.
    pub(super) fn move_state(&mut self, transfer: Transfer, channel: OwnedFd) -> Response {
        const NO_FD: u64 = 1 << 8;
        self.moving = Moving::No;
        let state = DeviceState {
            mtu: self.mtu,
            mac: self.mac,
            guest: *self.port.guest.lock(),
        };
        let begun = match transfer {
            _ if self.vrings.iter().any(|vring| vring.running) => Err(StateError::Running),
            Transfer::Save => Ok(Moving::Saved(state.save(channel))),
            Transfer::Load => Moving::load(channel),
        };
        match begun {
            Ok(moving) => {
                self.moving = moving;
                Response::U64(NO_FD)
            }
            Err(error) => Response::U64(NO_FD | self.state_stays(&error)),
        }
    }

    pub(super) fn check_state(&mut self) -> Response {
        match std::mem::take(&mut self.moving).check() {
            Ok(None) => Response::U64(0),
            Ok(Some(DeviceState { mtu, mac, guest })) => {
                (self.mtu, self.mac) = (mtu, mac);
                *self.port.guest.lock() = guest;
                Response::U64(0)
            }
            Err(error) => Response::U64(self.state_stays(&error)),
        }
    }

    /// Says why the state did not move: the migration fails for it, and QEMU's log says no more than that it did. Returns what
    /// the answer has for that.
    fn state_stays(&mut self, error: &StateError) -> u64 {
        let text = format!("the device's state cannot be moved: {error}");
        self.notes.push((Level::Warn, text));
        1
    }

    pub(super) fn set_mtu(&mut self, mtu: u16) -> Response {
        self.mtu = Some(mtu);
        Response::Done
    }

    pub(super) fn set_in_flight(&mut self, desc: InflightDesc, fd: &OwnedFd) -> Result<Response, Refusal> {
        let in_flight = InFlight::take(desc, fd, self.features.unwrap_or_default())?;
        self.change_all(|device| device.in_flight = in_flight);
        Ok(Response::Done)
    }
}
