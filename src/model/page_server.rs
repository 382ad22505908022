//! UNSAFE: the front-end's end of a post-copy migration: told which pages are missing, brings them.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

/// What a back-end's userfaultfd is to the front-end that got it.
///
/// It lives in the process whose memory it fills, so its addresses are this process's.
#[derive(Debug)]
pub struct PageServer {
    fd: OwnedFd,
}

/// `struct uffd_msg` of a page fault (linux/userfaultfd.h).
#[repr(C)]
#[derive(Default)]
struct Message {
    event: u8,
    reserved: [u8; 7],
    flags: u64,
    address: u64,
    thread: u64,
}

/// `struct uffdio_copy`.
#[repr(C)]
struct Copy {
    to: u64,
    from: u64,
    len: u64,
    mode: u64,
    copied: i64,
}

/// `struct uffdio_range`.
#[repr(C)]
struct Range {
    start: u64,
    len: u64,
}

const PAGEFAULT: u8 = 0x12;
const UFFDIO_WAKE: libc::Ioctl = 0x8010_aa02;
const UFFDIO_COPY: libc::Ioctl = 0xc028_aa03;

impl PageServer {
    /// Serves what `fd`, a userfaultfd of this process, watches over.
    pub fn new(fd: OwnedFd) -> Self {
        Self { fd }
    }

    /// The address of the page that somebody waits for, if somebody does and it was not told before.
    ///
    /// # Panics
    ///
    /// If the descriptor is no userfaultfd.
    pub fn next(&self) -> Option<u64> {
        let mut message = Message::default();
        let size = size_of::<Message>();
        // SAFETY: the kernel writes at most `size` bytes into `message`, every pattern of which is a value.
        let read = unsafe { libc::read(self.fd.as_raw_fd(), (&raw mut message).cast(), size) };
        if usize::try_from(read) == Ok(size) {
            assert_eq!(message.event, PAGEFAULT);
            return Some(message.address);
        }
        let error = io::Error::last_os_error();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock, "{error}");
        None
    }

    /// Fills the missing page at `address` with `bytes`, a whole page, and wakes who waits for it.
    ///
    /// # Errors
    ///
    /// The kernel's: the page is there, or no page can be had.
    pub fn bring(&self, address: u64, bytes: &[u8]) -> io::Result<()> {
        let mut copy = Copy {
            to: address,
            from: bytes.as_ptr().addr() as u64,
            len: bytes.len() as u64,
            mode: 0,
            copied: 0,
        };
        // SAFETY: the kernel reads `bytes`, and writes only pages that are registered with it and empty.
        result(unsafe { libc::ioctl(self.fd.as_raw_fd(), UFFDIO_COPY, &raw mut copy) })
    }

    /// Wakes who waits for the page of `len` bytes at `address`, which came in through the front-end's own mapping.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn wake(&self, address: u64, len: u64) -> io::Result<()> {
        let mut range = Range { start: address, len };
        // SAFETY: the kernel reads a range and touches no memory in it.
        result(unsafe { libc::ioctl(self.fd.as_raw_fd(), UFFDIO_WAKE, &raw mut range) })
    }
}

fn result(returned: libc::c_int) -> io::Result<()> {
    match returned {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
