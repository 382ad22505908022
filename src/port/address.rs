//! The address of a socket in the file system. The kernel takes 107 bytes; a longer path is gone the first part of the
//! way here, and the kernel is given the rest, from a descriptor on.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{self, Mode, OFlags};
use rustix::net::SocketAddrUnix;

/// Bytes of `sockaddr_un.sun_path` less its terminator.
const MAX_DIRECT: usize = 107;
/// Bytes of a path (PATH_MAX) less its terminator.
pub(super) const MAX_PATH: usize = 4095;
/// Bytes that a server socket's own name may have where its path is too long for the kernel: what `/proc/self/fd/N/`
/// leaves, with N in seven digits.
pub(super) const MAX_FAR_NAME: usize = MAX_DIRECT - "/proc/self/fd/1234567/".len();

/// An address, good while this lives.
#[derive(Debug)]
pub(super) struct Address {
    pub(super) unix: SocketAddrUnix,
    /// Where the way goes on from.
    _from: Option<OwnedFd>,
}

impl Address {
    /// Of a socket that is there, to connect to.
    pub(super) fn of_existing(path: &Path) -> io::Result<Address> {
        if path.as_os_str().len() <= MAX_DIRECT {
            return Address::direct(path);
        }
        let socket = fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
        let rest = of_descriptor(&socket);
        Address::from(socket, &rest)
    }

    /// Of a socket that is to be made.
    pub(super) fn of_new(path: &Path) -> io::Result<Address> {
        if path.as_os_str().len() <= MAX_DIRECT {
            return Address::direct(path);
        }
        let directory = path.parent().unwrap_or(Path::new("/"));
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = fs::open(directory, flags, Mode::empty())?;
        let rest = of_descriptor(&directory).join(path.file_name().unwrap_or_default());
        Address::from(directory, &rest)
    }

    fn direct(path: &Path) -> io::Result<Address> {
        let unix = SocketAddrUnix::new(path)?;
        Ok(Address { unix, _from: None })
    }

    fn from(fd: OwnedFd, rest: &Path) -> io::Result<Address> {
        let unix = SocketAddrUnix::new(rest)?;
        Ok(Address {
            unix,
            _from: Some(fd),
        })
    }
}

/// Whether a socket can be made under this path.
pub(super) fn fits_new(path: &Path) -> bool {
    let bytes = path.as_os_str().len();
    let name = path.file_name().map_or(0, OsStr::len);
    bytes <= MAX_DIRECT || bytes <= MAX_PATH && name <= MAX_FAR_NAME
}

/// A path to what a descriptor is of, whatever has become of its name.
pub(super) fn of_descriptor(fd: &OwnedFd) -> PathBuf {
    format!("/proc/self/fd/{}", fd.as_raw_fd()).into()
}
