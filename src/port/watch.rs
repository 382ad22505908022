//! Notices that a socket may have appeared: inotify on the directory it is awaited in.
//!
//! Where that directory does not exist yet, its nearest ancestor that does is watched instead; whatever
//! happens there makes the port try again and look again for the directory to watch. Several ports may
//! wait in one directory; the kernel gives them one watch, which is kept until the last of them leaves,
//! and each is woken only by the name it waits for.

use std::collections::HashMap;
use std::ffi::OsString;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use rustix::io::Errno;

/// What can turn a failed connect into a good one: the file comes, or may be used now.
const OF_INTEREST: WatchFlags = WatchFlags::CREATE
    .union(WatchFlags::MOVED_TO)
    .union(WatchFlags::ATTRIB)
    .union(WatchFlags::DELETE_SELF)
    .union(WatchFlags::MOVE_SELF)
    .union(WatchFlags::ONLYDIR);

/// The watches of every port, by the port's `K`.
pub(super) struct Watches<K> {
    inotify: OwnedFd,
    waiting: HashMap<i32, Vec<Waiter<K>>>,
}

/// Who waits in a watched directory, and for which name there.
#[derive(PartialEq)]
struct Waiter<K> {
    key: K,
    name: OsString,
}

impl<K: Copy + PartialEq> Watches<K> {
    pub(super) fn new() -> io::Result<Watches<K>> {
        let inotify = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        Ok(Watches {
            inotify,
            waiting: HashMap::new(),
        })
    }

    /// Tells `key` of what happens where `socket` should appear, instead of where it was told before.
    /// Without a watch (out of watches, say) the caller's timer still finds the socket.
    pub(super) fn watch(&mut self, key: K, socket: &Path) {
        let place = steps(socket).find_map(|(directory, name)| {
            Some((
                inotify::add_watch(&self.inotify, directory, OF_INTEREST).ok()?,
                Waiter { key, name },
            ))
        });
        if place
            .as_ref()
            .is_some_and(|(wd, w)| self.waiting.get(wd).is_some_and(|all| all.contains(w)))
        {
            return;
        }
        self.forget(key);
        if let Some((wd, waiter)) = place {
            self.waiting.entry(wd).or_default().push(waiter);
        }
    }

    /// `key` waits for nothing any more.
    pub(super) fn forget(&mut self, key: K) {
        let inotify = &self.inotify;
        self.waiting.retain(|wd, waiters| {
            waiters.retain(|w| w.key != key);
            if waiters.is_empty() {
                // The kernel may have dropped it first, with its directory.
                let _ = inotify::remove_watch(inotify, *wd);
            }
            !waiters.is_empty()
        });
    }

    /// Who should look again. Everybody, if the kernel lost count.
    pub(super) fn drain(&mut self) -> Vec<K> {
        let mut woken = Vec::new();
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut reader = inotify::Reader::new(&self.inotify, &mut buffer);
        loop {
            let event = match reader.next() {
                Ok(event) => event,
                Err(Errno::INTR) => continue,
                Err(_) => return woken,
            };
            if event.events().contains(ReadFlags::QUEUE_OVERFLOW) {
                woken.extend(self.waiting.values().flatten().map(|w| w.key));
            } else if event.events().contains(ReadFlags::IGNORED) {
                // The directory is gone and its watch with it.
                woken.extend(
                    self.waiting
                        .remove(&event.wd())
                        .into_iter()
                        .flatten()
                        .map(|w| w.key),
                );
            } else if let Some(waiters) = self.waiting.get(&event.wd()) {
                // An event without a name is about the directory itself: it concerns all.
                let name = event.file_name().map(|n| n.to_bytes());
                let concerned = waiters
                    .iter()
                    .filter(|w| name.is_none_or(|n| n == w.name.as_bytes()));
                woken.extend(concerned.map(|w| w.key));
            }
        }
    }
}

impl<K> AsFd for Watches<K> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inotify.as_fd()
    }
}

/// Where to wait for `socket`: by its name in its directory, else for that directory in its parent, ...
fn steps(socket: &Path) -> impl Iterator<Item = (&Path, OsString)> {
    socket.ancestors().filter_map(|path| {
        let directory = path.parent()?;
        let directory = if directory.as_os_str().is_empty() {
            Path::new(".")
        } else {
            directory
        };
        Some((directory, path.file_name()?.to_owned()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_appears_wakes_who_waits_for_it_and_nobody_else() {
        let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let mut watches = Watches::new().unwrap();
        watches.watch(1, &here.path().join("a"));
        watches.watch(2, &here.path().join("b"));
        watches.watch(3, &there.path().join("c"));
        std::fs::write(here.path().join("a"), "").unwrap();
        std::fs::write(here.path().join("other"), "").unwrap();
        assert_eq!(watches.drain(), [1]);
        assert_eq!(watches.drain(), [0; 0]);
        std::fs::write(there.path().join("c"), "").unwrap();
        assert_eq!(watches.drain(), [3]);
    }

    #[test]
    fn a_missing_directory_is_awaited_from_the_nearest_one_that_exists() {
        let top = tempfile::tempdir().unwrap();
        let socket = top.path().join("x/y/s");
        let mut watches = Watches::new().unwrap();
        for step in ["x", "x/y"] {
            watches.watch(7, &socket);
            std::fs::create_dir(top.path().join(step)).unwrap();
            assert!(watches.drain().contains(&7), "{step}");
        }
        watches.watch(7, &socket);
        std::fs::write(&socket, "").unwrap();
        assert!(watches.drain().contains(&7));
    }

    #[test]
    fn a_directory_that_goes_away_wakes_its_waiters() {
        let top = tempfile::tempdir().unwrap();
        let dir = top.path().join("d");
        std::fs::create_dir(&dir).unwrap();
        let mut watches = Watches::new().unwrap();
        watches.watch(1, &dir.join("s"));
        std::fs::remove_dir(&dir).unwrap();
        assert!(watches.drain().contains(&1));
        watches.watch(1, &dir.join("s"));
        std::fs::create_dir(&dir).unwrap();
        assert!(watches.drain().contains(&1));
    }

    #[test]
    fn who_left_is_not_woken() {
        let dir = tempfile::tempdir().unwrap();
        let mut watches = Watches::new().unwrap();
        watches.watch(1, &dir.path().join("s"));
        watches.watch(2, &dir.path().join("s"));
        watches.forget(1);
        std::fs::write(dir.path().join("s"), "").unwrap();
        assert_eq!(watches.drain(), [2]);
    }
}
