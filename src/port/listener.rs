//! The server's side of a socket file: made, recognised when stale, and removed only when it is ours.
//!
//! A vswitchd that was killed leaves its sockets behind, and `bind` refuses a path that exists. What
//! stands there is removed only when it is a socket that nobody answers on; a socket that is alive and
//! anything that is not a socket belong to somebody else.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::net::{self, AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use super::options::MAX_SOCKET_PATH;

/// Front-ends that may wait to be accepted: the stock ports' backlog.
const BACKLOG: i32 = 128;

/// Why a server port could not listen.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// The path does not fit a socket address.
    #[error("'{path}' has {0} bytes; a socket's path has at most {MAX_SOCKET_PATH}", path = .1.display())]
    TooLong(usize, PathBuf),
    /// Something other than a socket has this name.
    #[error("'{}' exists and is not a socket; it is not ours to remove", .0.display())]
    NotASocket(PathBuf),
    /// Another process listens here.
    #[error("'{}' is in use: another process listens on it", .0.display())]
    InUse(PathBuf),
    /// A system call failed.
    #[error("{what} '{}': {error}", .path.display())]
    System {
        /// What was being done.
        what: &'static str,
        /// To which file.
        path: PathBuf,
        /// How it failed.
        error: io::Error,
    },
}

impl ListenError {
    /// The positive errno that Open vSwitch shows for it.
    pub fn errno(&self) -> i32 {
        match self {
            ListenError::TooLong(..) => libc::ENAMETOOLONG,
            ListenError::NotASocket(_) => libc::EEXIST,
            ListenError::InUse(_) => libc::EADDRINUSE,
            ListenError::System { error, .. } => error.raw_os_error().unwrap_or(libc::EIO),
        }
    }
}

/// A listening socket and the file that names it.
#[derive(Debug)]
pub(super) struct Listener {
    socket: OwnedFd,
    file: SocketFile,
}

/// The file in the file system: removed by whoever made it, and only while it is the one that was made.
#[derive(Clone, Debug)]
pub(super) struct SocketFile {
    path: PathBuf,
    identity: (u64, u64),
}

impl SocketFile {
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Removes the file, unless something else has taken its name.
    pub(super) fn remove(&self) {
        if identity(&self.path).is_ok_and(|now| now == self.identity) {
            // A failure leaves a stale socket, which the next listener recognises.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let meta = std::fs::symlink_metadata(path)?;
    Ok((meta.dev(), meta.ino()))
}

impl Listener {
    /// Listens on `path`. A stale socket there is replaced. Does not block.
    pub(super) fn bind(path: &Path) -> Result<Listener, ListenError> {
        let system = |what| {
            let path = path.to_owned();
            move |error: Errno| ListenError::System {
                what,
                path,
                error: error.into(),
            }
        };
        let bytes = path.as_os_str().len();
        if bytes > MAX_SOCKET_PATH {
            return Err(ListenError::TooLong(bytes, path.to_owned()));
        }
        let address = SocketAddrUnix::new(path).map_err(system("cannot name"))?;
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
            .map_err(system("cannot create a socket for"))?;
        match net::bind(&socket, &address) {
            Err(Errno::ADDRINUSE) => {
                remove_if_stale(path)?;
                net::bind(&socket, &address)
            }
            result => result,
        }
        .map_err(system("cannot bind"))?;
        let identity = identity(path).map_err(|error| ListenError::System {
            what: "cannot look at",
            path: path.to_owned(),
            error,
        })?;
        let file = SocketFile {
            path: path.to_owned(),
            identity,
        };
        if let Err(error) = net::listen(&socket, BACKLOG) {
            file.remove();
            return Err(system("cannot listen on")(error));
        }
        Ok(Listener { socket, file })
    }

    pub(super) fn file(&self) -> &SocketFile {
        &self.file
    }

    /// A front-end that wants in, if there is one.
    pub(super) fn accept(&self) -> io::Result<Option<UnixStream>> {
        match net::accept_with(&self.socket, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
            Ok(fd) => Ok(Some(fd.into())),
            Err(Errno::AGAIN | Errno::CONNABORTED | Errno::INTR) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Removes a socket that nobody listens on; refuses to touch anything else.
fn remove_if_stale(path: &Path) -> Result<(), ListenError> {
    let system = |what| {
        let path = path.to_owned();
        move |error| ListenError::System { what, path, error }
    };
    let meta = match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        meta => meta.map_err(system("cannot look at"))?,
    };
    if !meta.file_type().is_socket() {
        return Err(ListenError::NotASocket(path.to_owned()));
    }
    match super::connector::connect(path) {
        Err(error) if error.raw_os_error() == Some(libc::ECONNREFUSED) => {
            log::info!(
                "'{}' is left over from a process that is gone; replacing it",
                path.display()
            );
            std::fs::remove_file(path).map_err(system("cannot remove the stale socket"))
        }
        _ => Err(ListenError::InUse(path.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::{UnixDatagram, UnixListener};

    fn directory() -> tempfile::TempDir {
        tempfile::tempdir().unwrap()
    }

    #[test]
    fn a_stale_socket_is_replaced() {
        let dir = directory();
        let path = dir.path().join("s");
        drop(UnixListener::bind(&path).unwrap());
        let listener = Listener::bind(&path).expect("nobody listens there");
        UnixStream::connect(&path).unwrap();
        assert!(listener.accept().unwrap().is_some());
    }

    #[test]
    fn a_live_socket_is_left_alone() {
        let dir = directory();
        let path = dir.path().join("s");
        let live = UnixListener::bind(&path).unwrap();
        let error = Listener::bind(&path).unwrap_err();
        assert!(matches!(error, ListenError::InUse(_)), "{error}");
        assert_eq!(error.errno(), libc::EADDRINUSE);
        live.accept().expect("the probe connected");
        UnixStream::connect(&path).expect("still there");
    }

    #[test]
    fn what_is_not_a_stream_socket_is_never_removed() {
        let dir = directory();
        let file = dir.path().join("file");
        std::fs::write(&file, "mine").unwrap();
        let folder = dir.path().join("folder");
        std::fs::create_dir(&folder).unwrap();
        let link = dir.path().join("link");
        std::os::unix::fs::symlink("nowhere", &link).unwrap();
        let datagram = dir.path().join("datagram");
        let _bound = UnixDatagram::bind(&datagram).unwrap();
        for path in [&file, &folder, &link, &datagram] {
            Listener::bind(path).unwrap_err();
            assert!(path.symlink_metadata().is_ok(), "{} was removed", path.display());
        }
        assert_eq!(std::fs::read(&file).unwrap(), b"mine");
    }

    #[test]
    fn a_file_that_took_the_name_is_not_removed_at_the_end() {
        let dir = directory();
        let path = dir.path().join("s");
        let listener = Listener::bind(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        let _other = UnixListener::bind(&path).unwrap();
        listener.file().remove();
        assert!(path.exists());
    }

    #[test]
    fn a_path_too_long_for_a_socket_is_refused_by_name() {
        let path = Path::new("/tmp").join("x".repeat(103));
        let error = Listener::bind(&path).unwrap_err();
        assert_eq!(error.errno(), libc::ENAMETOOLONG);
        assert!(error
            .to_string()
            .ends_with("has 108 bytes; a socket's path has at most 107"));
    }

    #[test]
    fn a_missing_directory_is_an_error_that_names_the_path() {
        let error = Listener::bind(Path::new("/nonexistent/dir/s")).unwrap_err();
        assert_eq!(error.errno(), libc::ENOENT);
        assert!(error.to_string().contains("/nonexistent/dir/s"));
    }
}
