//! What the tests of whole ports share.

use std::path::Path;

use ovs_vhost::port::Host;

/// A netdev that does nothing of what it is told.
pub struct Netdev;

impl Host for Netdev {
    fn changed(&self) {}
    fn request_reconfigure(&self) {}
    fn unlink_at_exit(&self, _: &Path) {}
    fn keep_at_exit(&self, _: &Path) {}
}
