//! The two system calls. What they return is owned or counted before it leaves here.

use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

use memoffset::offset_of;

use crate::vhost_user::message::{Fields, Short, MAX_FDS};

/// What one read brought.
#[derive(Debug, Default)]
pub(super) struct Chunk {
    pub(super) len: usize,
    pub(super) fds: Vec<OwnedFd>,
    /// The kernel had more descriptors than it could hand over.
    pub(super) truncated: bool,
}

/// Room for exactly [`MAX_FDS`] descriptors: with one more the kernel says MSG_CTRUNC.
const CONTROL_SIZE: usize = size_of::<libc::cmsghdr>() + MAX_FDS * size_of::<RawFd>();

#[repr(C, align(8))]
struct Control([u8; CONTROL_SIZE]);

// Control messages are read as bytes below: length, level, type, data; the next one at the next word.
const WORD: usize = size_of::<usize>();
const _: () = {
    assert!(align_of::<libc::cmsghdr>() <= align_of::<Control>());
    assert!(CONTROL_SIZE % WORD == 0);
    assert!(offset_of!(libc::cmsghdr, cmsg_len) == 0);
    assert!(offset_of!(libc::cmsghdr, cmsg_level) == WORD);
    assert!(offset_of!(libc::cmsghdr, cmsg_type) == WORD + 4);
    assert!(size_of::<libc::cmsghdr>() == WORD + 8);
};

/// Reads what is there, at most `bytes.len()`, and the descriptors that came with it.
pub(super) fn receive(stream: &UnixStream, bytes: &mut [u8]) -> io::Result<Chunk> {
    let mut control = Control([0; CONTROL_SIZE]);
    let mut iov = libc::iovec {
        iov_base: bytes.as_mut_ptr().cast(),
        iov_len: bytes.len(),
    };
    // SAFETY: a msghdr is numbers and pointers, and zero is a value of each.
    let mut msg: libc::msghdr = unsafe { std::mem::zeroed() };
    msg.msg_iov = &raw mut iov;
    msg.msg_iovlen = 1;
    msg.msg_control = (&raw mut control).cast();
    msg.msg_controllen = CONTROL_SIZE;
    let flags = libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC;
    // SAFETY: `stream` is an open socket; `msg` points to `iov` and `control`, `iov` to `bytes`, each with
    // its true length, and all of them outlive the call.
    let len = unsafe { libc::recvmsg(stream.as_raw_fd(), &raw mut msg, flags) };
    let len = usize::try_from(len).map_err(|_| io::Error::last_os_error())?;
    let filled = control.0.get(..msg.msg_controllen).unwrap_or(&control.0);
    let fds = owned_fds(filled);
    Ok(Chunk {
        len,
        fds,
        truncated: msg.msg_flags & libc::MSG_CTRUNC != 0,
    })
}

/// Every descriptor in the control messages of a read that has just succeeded.
fn owned_fds(mut control: &[u8]) -> Vec<OwnedFd> {
    let mut fds = Vec::new();
    while let Ok((len, level, kind)) = control_header(control) {
        let Some(data) = control.get(size_of::<libc::cmsghdr>()..len) else {
            break;
        };
        let mut numbers = Fields::new(data);
        while let (libc::SOL_SOCKET, libc::SCM_RIGHTS, Ok(number)) = (level, kind, numbers.bytes()) {
            // SAFETY: the kernel opened this descriptor for the read, and this is the only place that looks.
            fds.push(unsafe { OwnedFd::from_raw_fd(RawFd::from_ne_bytes(number)) });
        }
        control = control.get(len.next_multiple_of(WORD)..).unwrap_or_default();
    }
    fds
}

/// Length (this header included), level and type of the first control message.
fn control_header(control: &[u8]) -> Result<(usize, i32, i32), Short> {
    let mut fields = Fields::new(control);
    let len = usize::from_ne_bytes(fields.bytes()?);
    Ok((
        len,
        i32::from_ne_bytes(fields.bytes()?),
        i32::from_ne_bytes(fields.bytes()?),
    ))
}

/// A control message with one descriptor.
#[repr(C)]
struct Rights {
    header: libc::cmsghdr,
    fd: RawFd,
    padding: u32,
}

const _: () = assert!(offset_of!(Rights, fd) == size_of::<libc::cmsghdr>());

/// Sends what fits of `bytes`, with `fd` if there is one; never raises SIGPIPE.
pub(super) fn send(stream: &UnixStream, bytes: &[u8], fd: Option<&OwnedFd>) -> io::Result<usize> {
    let mut iov = libc::iovec {
        iov_base: bytes.as_ptr().cast_mut().cast(),
        iov_len: bytes.len(),
    };
    let mut rights = Rights {
        header: libc::cmsghdr {
            cmsg_len: offset_of!(Rights, padding),
            cmsg_level: libc::SOL_SOCKET,
            cmsg_type: libc::SCM_RIGHTS,
        },
        fd: fd.map_or(-1, AsRawFd::as_raw_fd),
        padding: 0,
    };
    // SAFETY: a msghdr is numbers and pointers, and zero is a value of each.
    let mut msg: libc::msghdr = unsafe { std::mem::zeroed() };
    msg.msg_iov = &raw mut iov;
    msg.msg_iovlen = 1;
    if fd.is_some() {
        msg.msg_control = (&raw mut rights).cast();
        msg.msg_controllen = size_of::<Rights>();
    }
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: `stream` is an open socket; `msg` points to `iov` and perhaps `rights`, `iov` to `bytes`, each with
    // its true length; all of them outlive the call, which only reads them.
    let sent = unsafe { libc::sendmsg(stream.as_raw_fd(), &raw const msg, flags) };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error())
}
