//! Post-copy, seen from one connection: the guest runs here while parts of its memory are still where it came from.
//!
//! The front-end asks for a userfaultfd (ADVISE), says that memory is incomplete from now on (LISTEN), and hands over
//! regions as ever, but each in two steps: we say where it is mapped, the front-end takes note of that, and only when
//! it has said so may the region be used, for then a missing page is brought to whoever touches it. After END all
//! pages are there and regions are in one step again. QEMU goes through all of this once per queue pair.

use std::sync::Arc;

use crate::memory::{FrontendAddr, MemTable, Region, RegionDesc, Remnant, Userfault, UserfaultError};
use crate::vhost_user::{Refusal, Response};

/// Whether client ports offer post-copy, for an operator who wants it for all (`other_config:vhost-postcopy-support`), in
/// a process where `obstacle` keeps it from working, if there is one. Says so in the stock ports' words.
pub(super) fn postcopy_support(wanted: bool, obstacle: Option<&str>) -> bool {
    if let Some(obstacle) = obstacle.filter(|_| wanted) {
        log::warn!("{obstacle}");
    }
    let enabled = wanted && obstacle.is_none();
    let state = if enabled { "enabled" } else { "disabled" };
    log::info!("POSTCOPY support for vhost-user-client {state}.");
    enabled
}

/// What keeps post-copy from working in this process, whose memory is locked or not (`--mlockall`).
pub(super) fn postcopy_obstacle(memory_locked: bool) -> Option<String> {
    obstacle(memory_locked, Userfault::open)
}

/// Locked memory is all there at once: nobody ever misses a page of it.
fn obstacle(memory_locked: bool, open: impl Fn() -> Result<Userfault, UserfaultError>) -> Option<String> {
    if memory_locked {
        return Some("vhost-postcopy-support and mlockall are not compatible.".to_owned());
    }
    let error = open().err()?;
    Some(format!("vhost-postcopy-support: {error}"))
}

/// How far a front-end has got with it.
#[derive(Default)]
pub(super) struct Postcopy {
    /// From ADVISE to END.
    userfault: Option<Arc<Userfault>>,
    listening: bool,
    /// All memory with the regions that the front-end was told of and has not acknowledged.
    next: Option<MemTable>,
}

impl Postcopy {
    /// POSTCOPY_ADVISE: one userfaultfd serves every queue pair that asks.
    pub(super) fn advise(&mut self) -> Result<Response, Refusal> {
        let userfault = match &self.userfault {
            Some(userfault) => Arc::clone(userfault),
            None => Arc::new(Userfault::open().map_err(Refusal::new)?),
        };
        let fd = userfault.share().map_err(Refusal::new)?;
        self.userfault = Some(userfault);
        Ok(Response::Fd(fd))
    }

    /// POSTCOPY_LISTEN, with `memory` set so far.
    pub(super) fn listen(&mut self, memory: &MemTable) -> Result<Response, Refusal> {
        if self.userfault.is_none() {
            return Err(Refusal::new("there was no VHOST_USER_POSTCOPY_ADVISE before"));
        }
        if !memory.regions().is_empty() {
            // Its pages may have been touched already, and would never be waited for.
            return Err(Refusal::new("memory regions were set before"));
        }
        self.listening = true;
        Ok(Response::Done)
    }

    /// POSTCOPY_END. Whoever still waits for a page goes on. Says what is left of it.
    pub(super) fn end(&mut self) -> Vec<Remnant> {
        self.listening = false;
        let ended = self.userfault.take();
        ended.map_or_else(Vec::new, |userfault| userfault.finish())
    }

    /// The connection is gone. Whoever still waits for a page goes on, and the guest never sees with what. Says what is left.
    pub(super) fn abandon(&self) -> Vec<Remnant> {
        let abandoned = self.userfault.as_ref();
        abandoned.map_or_else(Vec::new, |userfault| userfault.abandon())
    }

    /// What makes a thread sleep that touches the guest's memory, while that may happen.
    pub(super) fn missing_pages(&self) -> Option<&Arc<Userfault>> {
        self.userfault.as_ref().filter(|_| self.listening)
    }

    pub(super) fn is_listening(&self) -> bool {
        self.listening
    }

    /// All memory that the front-end has spoken of, of which `memory` is in use.
    pub(super) fn latest<'a>(&'a self, memory: &'a MemTable) -> &'a MemTable {
        self.next.as_ref().unwrap_or(memory)
    }

    /// Makes `table` wait for its acknowledgement.
    pub(super) fn propose(&mut self, table: MemTable) {
        self.next = Some(table);
    }

    /// Forgets a region that may wait for its acknowledgement. Says whether it did.
    pub(super) fn retract(&mut self, desc: &RegionDesc) -> bool {
        let without = self.next.as_ref().and_then(|next| next.without_region(desc).ok());
        let found = without.is_some();
        self.next = without.or_else(|| self.next.take());
        found
    }

    /// The front-end knows all addresses it was told: the memory to use from now on, if it is another than `memory`.
    pub(super) fn acknowledged(&mut self, memory: &MemTable) -> Result<Option<MemTable>, Refusal> {
        let next = self.next.take();
        if next.is_none() && !self.listening {
            return Err(Refusal::new("acknowledges addresses that it was not told"));
        }
        // After END, which a front-end may send from another thread, there is nothing to wait for.
        if let (Some(next), Some(userfault)) = (&next, self.missing_pages()) {
            let known = |region: &Arc<Region>| memory.regions().iter().any(|old| Arc::ptr_eq(old, region));
            for region in next.regions().iter().filter(|region| !known(region)) {
                userfault.watch(region).map_err(Refusal::new)?;
            }
        }
        Ok(next)
    }
}

/// The region as the front-end described it, but for the address, which is ours.
pub(super) fn with_our_address(region: &Region) -> RegionDesc {
    RegionDesc {
        frontend: FrontendAddr(region.base()),
        ..*region.desc()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locked_memory_and_a_missing_userfaultfd_each_keep_post_copy_off_and_say_why() {
        let refused = || {
            let error = std::io::Error::from_raw_os_error(libc::EPERM);
            Err(UserfaultError::Unavailable(error))
        };
        // Tools look for the stock line.
        let locked = obstacle(true, refused);
        assert_eq!(
            locked.as_deref(),
            Some("vhost-postcopy-support and mlockall are not compatible.")
        );
        let text = obstacle(false, refused).expect("an obstacle");
        assert!(
            text.starts_with("vhost-postcopy-support: userfaultfd") && text.contains("CAP_SYS_PTRACE"),
            "{text}"
        );
        assert_eq!(obstacle(false, Userfault::open), None);
        assert!(postcopy_support(true, None));
        assert!(!postcopy_support(false, None) && !postcopy_support(true, Some("locked")));
    }
}
