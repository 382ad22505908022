//! SET_DEVICE_STATE_FD: the way by which a device's own state moves with its guest (vhost-user, "Device state transfer").

use super::decode::{device, Decoded, Parts, Request};
use super::malformed::Malformed;

/// Bytes of the parameters: direction and phase.
pub(super) const TRANSFER_SIZE: usize = 8;
/// The only phase: every ring is stopped.
const STOPPED: u32 = 0;

/// Which way a state goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transfer {
    /// Out of this device.
    Save,
    /// Into it.
    Load,
}

pub(super) fn set_device_state_fd(mut parts: Parts<'_>) -> Result<Decoded, Malformed> {
    let (direction, phase) = (parts.fields.u32()?, parts.fields.u32()?);
    let transfer = match (direction, phase) {
        (0, STOPPED) => Transfer::Save,
        (1, STOPPED) => Transfer::Load,
        _ => return Err(Malformed::Transfer { direction, phase }),
    };
    device(Request::SetDeviceStateFd(transfer, parts.fd()?))
}
