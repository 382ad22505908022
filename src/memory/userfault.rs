//! UNSAFE: memory whose pages are not all there yet (userfaultfd).
//!
//! In a post-copy migration the guest runs here while part of its memory is still where it came from. Whoever
//! touches a page that has not arrived sleeps in the kernel until the front-end, which holds a duplicate of our
//! [`Userfault`], has brought it. So a front-end that brings nothing could make a thread of ours sleep for ever;
//! [`Userfault::abandon`] is the way out, and it leaves the guest's memory as it is.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use super::pages::Range;
use super::region::{Region, RegionDesc};

/// Why missing pages cannot be waited for.
#[derive(Debug, thiserror::Error)]
pub enum UserfaultError {
    /// The system call is refused.
    #[error(
        "userfaultfd is not to be had: {0} (it takes Linux 5.11 or later, or CAP_SYS_PTRACE, or \
         vm.unprivileged_userfaultfd=1, and a seccomp filter that lets it through)"
    )]
    Unavailable(io::Error),
    /// The kernel has it for other memory than guests' only.
    #[error("this kernel's userfaultfd (features {0:#x}) knows neither shared memory nor hugetlbfs")]
    Unfit(u64),
    /// The kernel does not watch this region.
    #[error("missing pages of region {desc} cannot be waited for: {error}")]
    Region {
        /// The region as the front-end described it.
        desc: RegionDesc,
        /// The kernel's reason.
        error: io::Error,
    },
    /// The migration is over, or its front-end is gone.
    #[error("post-copy has ended")]
    Ended,
}

/// What the kernel did not do when post-copy ended.
#[derive(Debug, thiserror::Error)]
pub enum Remnant {
    /// The front-end's memory could not be replaced.
    #[error("post-copy: the front-end is gone, and region {desc} is its memory still: {error}")]
    Mapped {
        /// The region as the front-end described it.
        desc: RegionDesc,
        /// The kernel's reason.
        error: io::Error,
    },
    /// A region has not been taken from the userfaultfd.
    #[error("post-copy: region {desc} is watched still: {error}")]
    Watched {
        /// The region as the front-end described it.
        desc: RegionDesc,
        /// The kernel's reason.
        error: io::Error,
    },
    /// Who waits for a page may do so for ever.
    #[error("post-copy: who sleeps in region {desc} cannot be woken: {error}")]
    Asleep {
        /// The region as the front-end described it.
        desc: RegionDesc,
        /// The kernel's reason.
        error: io::Error,
    },
}

/// A userfaultfd, and the regions whose missing pages it watches over. Ended when dropped.
#[derive(Debug)]
pub struct Userfault {
    fd: OwnedFd,
    /// `None` once it has ended.
    regions: Mutex<Option<Vec<Weak<Region>>>>,
}

impl Userfault {
    /// Opens one that watches over nothing yet.
    ///
    /// It serves faults of our own code only, not of the kernel on our behalf: no system call of ours is given
    /// guest memory, and that much an unprivileged process may have.
    ///
    /// # Errors
    ///
    /// [`UserfaultError::Unavailable`], [`UserfaultError::Unfit`].
    pub fn open() -> Result<Self, UserfaultError> {
        let flags = libc::O_CLOEXEC | libc::O_NONBLOCK;
        let fd = match sys::userfaultfd(flags | sys::USER_MODE_ONLY) {
            // Linux before 5.11 does not know the flag.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => sys::userfaultfd(flags),
            other => other,
        };
        let fd = fd.map_err(UserfaultError::Unavailable)?;
        // No feature is asked for: all a front-end needs is told of is a missing page.
        let mut api = sys::Api {
            api: sys::API_VERSION,
            ..sys::Api::default()
        };
        sys::ioctl(&fd, sys::API, &mut api).map_err(UserfaultError::Unavailable)?;
        match api.features & sys::FEATURES {
            sys::FEATURES => Ok(Self {
                fd,
                regions: Mutex::new(Some(Vec::new())),
            }),
            _ => Err(UserfaultError::Unfit(api.features)),
        }
    }

    /// A descriptor for the front-end.
    ///
    /// # Errors
    ///
    /// No more descriptors.
    pub fn share(&self) -> io::Result<OwnedFd> {
        self.fd.try_clone()
    }

    /// From here on who touches a missing page of `region` sleeps until somebody brings it. The region must have
    /// been mapped by [`Region::map_incomplete`], and nobody may have touched it yet.
    ///
    /// # Errors
    ///
    /// [`UserfaultError::Region`] for memory that is neither shared memory nor hugetlbfs, [`UserfaultError::Ended`].
    pub fn watch(&self, region: &Arc<Region>) -> Result<(), UserfaultError> {
        let mut regions = self.regions.lock();
        let watched = regions.as_mut().ok_or(UserfaultError::Ended)?;
        let refuse = |error| UserfaultError::Region {
            desc: *region.desc(),
            error,
        };
        let mut register = sys::Register {
            range: region.mapping().range(),
            mode: sys::MISSING,
            ioctls: 0,
        };
        sys::ioctl(&self.fd, sys::REGISTER, &mut register).map_err(refuse)?;
        watched.push(Arc::downgrade(region));
        match register.ioctls & sys::CAN_COPY {
            0 => Err(refuse(io::ErrorKind::Unsupported.into())),
            _ => Ok(()),
        }
    }

    /// All pages are there: nobody will sleep any more, and who still does wakes up. Says what is left of it.
    pub fn finish(&self) -> Vec<Remnant> {
        let regions = self.end();
        regions
            .iter()
            .filter_map(|region| self.unwatch(region).err())
            .collect()
    }

    /// The front-end is gone, pages may be missing for ever: who sleeps wakes up. From here on all of the memory is
    /// ours alone and reads as zeros, so that what is still under way cannot pass for what the guest had there. Says what is
    /// left of the front-end.
    pub fn abandon(&self) -> Vec<Remnant> {
        let regions = self.end();
        let ends = regions
            .iter()
            .flat_map(|region| match region.mapping().cut_off() {
                // Whoever slept has left the old mapping to do so, and finds the new one.
                Ok(()) => [Ok(()), self.wake(region)],
                Err(error) => {
                    let desc = *region.desc();
                    [Err(Remnant::Mapped { desc, error }), self.unwatch(region)]
                }
            });
        ends.filter_map(Result::err).collect()
    }

    fn end(&self) -> Vec<Arc<Region>> {
        let regions = self.regions.lock().take().unwrap_or_default();
        regions.iter().filter_map(Weak::upgrade).collect()
    }

    /// Wakes who sleeps there, too.
    fn unwatch(&self, region: &Region) -> Result<(), Remnant> {
        let (mut range, desc) = (region.mapping().range(), *region.desc());
        sys::ioctl(&self.fd, sys::UNREGISTER, &mut range).map_err(|error| Remnant::Watched { desc, error })
    }

    fn wake(&self, region: &Region) -> Result<(), Remnant> {
        let (mut range, desc) = (region.mapping().range(), *region.desc());
        sys::ioctl(&self.fd, sys::WAKE, &mut range).map_err(|error| Remnant::Asleep { desc, error })
    }
}

impl Drop for Userfault {
    fn drop(&mut self) {
        self.finish();
    }
}

/// The kernel's interface (linux/userfaultfd.h), which libc does not have.
mod sys {
    use super::*;

    pub(super) const API_VERSION: u64 = 0xaa;
    /// Only for faults of user-space code.
    pub(super) const USER_MODE_ONLY: libc::c_int = 1;
    /// Missing pages of hugetlbfs and of shared memory.
    pub(super) const FEATURES: u64 = 1 << 4 | 1 << 5;
    pub(super) const MISSING: u64 = 1;
    /// A registered range can have its pages filled in.
    pub(super) const CAN_COPY: u64 = 1 << 3;

    #[repr(C)]
    #[derive(Default)]
    pub(super) struct Api {
        pub(super) api: u64,
        pub(super) features: u64,
        pub(super) ioctls: u64,
    }

    #[repr(C)]
    pub(super) struct Register {
        pub(super) range: Range,
        pub(super) mode: u64,
        pub(super) ioctls: u64,
    }

    /// A request and the type of its argument, whose size is in its number (bits 16 to 29).
    #[derive(Clone, Copy)]
    pub(super) struct Request<T>(libc::Ioctl, std::marker::PhantomData<T>);

    const fn request<T>(number: libc::Ioctl) -> Request<T> {
        assert!((number >> 16) & 0x3fff == size_of::<T>() as libc::Ioctl);
        Request(number, std::marker::PhantomData)
    }

    pub(super) const API: Request<Api> = request(0xc018_aa3f);
    pub(super) const REGISTER: Request<Register> = request(0xc020_aa00);
    pub(super) const UNREGISTER: Request<Range> = request(0x8010_aa01);
    pub(super) const WAKE: Request<Range> = request(0x8010_aa02);

    pub(super) fn userfaultfd(flags: libc::c_int) -> io::Result<OwnedFd> {
        // SAFETY: the call takes one number and touches no memory.
        let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, flags) };
        match libc::c_int::try_from(fd) {
            // SAFETY: a descriptor that the kernel opened just now for us alone.
            Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
            _ => Err(io::Error::last_os_error()),
        }
    }

    pub(super) fn ioctl<T>(fd: &OwnedFd, request: Request<T>, argument: &mut T) -> io::Result<()> {
        // SAFETY: the request reads and writes one T, as the size in its number says. What it does to memory is to
        // make it wait for pages, which no access through the memory layer can tell from a slow one.
        match unsafe { libc::ioctl(fd.as_raw_fd(), request.0, std::ptr::from_mut(argument)) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

#[cfg(all(test, not(miri)))]
mod tests {
    use super::*;
    use crate::memory::{FrontendAddr, GuestAddr, MemTable};
    use crate::model::{GuestMemory, PageServer};
    use std::os::fd::AsFd;
    use std::sync::mpsc;
    use std::thread;
    use std::time::Duration;

    const PAGE_BYTES: usize = 4096;
    const PAGE: u64 = PAGE_BYTES as u64;
    const AT: GuestAddr = GuestAddr(0x1000);

    fn desc(size: u64) -> RegionDesc {
        RegionDesc {
            guest: AT,
            size,
            frontend: FrontendAddr(0),
            mmap_offset: 0,
        }
    }

    /// Memory of which no page is there, and the other end of its userfaultfd.
    fn incomplete(file: impl AsFd, size: u64) -> (Arc<Userfault>, MemTable, PageServer) {
        let userfault = Userfault::open().unwrap();
        let region = Arc::new(Region::map_incomplete(desc(size), file).unwrap());
        userfault.watch(&region).unwrap();
        let server = PageServer::new(userfault.share().unwrap());
        (Arc::new(userfault), MemTable::new(vec![region]).unwrap(), server)
    }

    fn read(table: &MemTable, addr: u64) -> u8 {
        let mut byte = [0xff];
        table.cursor(0).unwrap().read(GuestAddr(addr), &mut byte).unwrap();
        byte[0]
    }

    /// Runs `work` on a thread of its own, and proves that it sleeps before `meanwhile` lets it go on.
    fn sleeps<R: Send>(work: impl FnOnce() -> R + Send, meanwhile: impl FnOnce()) -> R {
        thread::scope(|scope| {
            let (done, is_done) = mpsc::channel();
            scope.spawn(move || done.send(work()));
            let early = is_done.recv_timeout(Duration::from_millis(100));
            assert!(early.is_err(), "a missing page makes nobody wait");
            meanwhile();
            is_done
                .recv_timeout(Duration::from_secs(20))
                .expect("it wakes up")
        })
    }

    /// The page that somebody waits for: on a busy machine it may be a while before they do.
    fn asked(server: &PageServer) -> Option<u64> {
        (0..2000).find_map(|_| {
            let page = server.next();
            if page.is_none() {
                thread::sleep(Duration::from_millis(10));
            }
            page
        })
    }

    #[test]
    fn who_touches_a_missing_page_sleeps_until_it_arrives() {
        let memory = GuestMemory::new(4 * PAGE);
        let (userfault, table, server) = incomplete(memory.file(), 4 * PAGE);
        let base = table.regions()[0].base();
        let byte = sleeps(
            || read(&table, AT.0 + 2 * PAGE + 5),
            || {
                let page = asked(&server);
                if page.is_none() {
                    // Or the reader would sleep forever, and this test with it.
                    userfault.finish();
                }
                let expected = Some(base + 2 * PAGE);
                assert_eq!(page, expected, "the fault names the page, by our address");
                server.bring(base + 2 * PAGE, &[7; PAGE_BYTES]).unwrap();
            },
        );
        assert_eq!(byte, 7);
        assert_eq!(server.next(), None);
    }

    #[test]
    fn pages_that_are_there_make_nobody_wait() {
        let memory = GuestMemory::new(4 * PAGE);
        memory.write(AT, &[9]);
        let (_userfault, table, server) = incomplete(memory.file(), 4 * PAGE);
        assert_eq!(read(&table, AT.0), 9);
        assert_eq!(server.next(), None);
    }

    #[test]
    fn who_sleeps_when_the_migration_ends_wakes_up() {
        let memory = GuestMemory::new(4 * PAGE);
        let (userfault, table, _server) = incomplete(memory.file(), 4 * PAGE);
        assert_eq!(
            sleeps(|| read(&table, AT.0), || assert!(userfault.finish().is_empty())),
            0
        );
        assert_eq!(read(&table, AT.0 + PAGE), 0, "nor does anybody sleep after that");
        memory.write(AT, &[5]);
        assert_eq!(read(&table, AT.0), 5, "it is the guest's memory as before");
    }

    #[test]
    fn an_abandoned_migration_wakes_a_writer_and_the_guest_never_sees_what_it_wrote() {
        let memory = GuestMemory::new(4 * PAGE);
        memory.write(GuestAddr(AT.0 + PAGE), &[3]);
        let (userfault, table, _server) = incomplete(memory.file(), 4 * PAGE);
        let write = || table.cursor(0).unwrap().write(AT, &[0xaa; 8]);
        assert_eq!(sleeps(write, || assert!(userfault.abandon().is_empty())), Ok(()));
        let pages = rustix::fs::fstat(memory.file()).unwrap().st_blocks * 512 / 4096;
        assert_eq!(pages, 1, "no page was made up in the guest's memory");
        assert_eq!(read(&table, AT.0 + PAGE), 0, "nor is the rest of it ours to see");
    }

    #[test]
    fn after_the_end_nothing_is_watched() {
        let memory = GuestMemory::new(PAGE);
        let region = Arc::new(Region::map_incomplete(desc(PAGE), memory.file()).unwrap());
        for end in [Userfault::finish, Userfault::abandon] {
            let userfault = Userfault::open().unwrap();
            end(&userfault);
            end(&userfault);
            assert!(matches!(userfault.watch(&region), Err(UserfaultError::Ended)));
        }
    }

    #[test]
    fn memory_that_is_gone_before_the_end_is_nobodys_business() {
        let memory = GuestMemory::new(PAGE);
        let (userfault, table, _server) = incomplete(memory.file(), PAGE);
        drop(table);
        userfault.abandon();
    }

    #[test]
    fn a_file_that_is_no_memory_is_refused_with_a_reason() {
        // On a disk, as programs are; the temporary directory may be shared memory itself.
        let program = std::env::current_exe().unwrap();
        let file = tempfile::tempfile_in(program.parent().unwrap()).unwrap();
        file.set_len(PAGE).unwrap();
        let region = Arc::new(Region::map_incomplete(desc(PAGE), &file).unwrap());
        let refused = Userfault::open().unwrap().watch(&region);
        assert!(
            matches!(refused, Err(UserfaultError::Region { .. })),
            "{refused:?}"
        );
    }

    #[test]
    fn a_huge_page_arrives_whole() {
        const HUGE_BYTES: usize = 2 << 20;
        const HUGE: u64 = HUGE_BYTES as u64;
        let flags = rustix::fs::MemfdFlags::HUGETLB | rustix::fs::MemfdFlags::HUGE_2MB;
        let file = rustix::fs::memfd_create("huge", flags).unwrap();
        rustix::fs::ftruncate(&file, 2 * HUGE).unwrap();
        let (userfault, table, server) = incomplete(&file, 2 * HUGE);
        let base = table.regions()[0].base();
        thread::scope(|scope| {
            let reader = scope.spawn(|| read(&table, AT.0 + HUGE + 0x12_3456));
            let page = loop {
                match server.next() {
                    Some(page) => break page,
                    None => thread::yield_now(),
                }
            };
            assert_eq!(page, base + HUGE, "the fault names the huge page");
            if let Err(error) = server.bring(page, &vec![6; HUGE_BYTES]) {
                eprintln!("SKIP: no huge page to bring: {error}");
                userfault.abandon();
                return;
            }
            assert_eq!(reader.join().unwrap(), 6);
        });
    }

    #[test]
    fn the_reason_says_what_it_takes() {
        let text = UserfaultError::Unavailable(io::Error::from_raw_os_error(libc::EPERM)).to_string();
        for needle in ["CAP_SYS_PTRACE", "vm.unprivileged_userfaultfd", "not permitted"] {
            assert!(text.contains(needle), "{text}");
        }
    }
}
