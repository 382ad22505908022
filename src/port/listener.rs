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
use rustix::net::{self, AddressFamily, SocketFlags, SocketType};

use super::address::{fits_new, Address, MAX_FAR_NAME};
use super::connector::connect;
use super::denied::{self, Wanted};

/// Front-ends that may wait to be accepted: the stock ports' backlog.
const BACKLOG: i32 = 128;

/// Why a server port could not listen.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// The path leads nowhere a socket can be made.
    #[error("'{}' is too long: beyond 107 bytes, the name of a socket has at most {MAX_FAR_NAME}", .0.display())]
    TooLong(PathBuf),
    /// The system does not let this process make it there.
    #[error("cannot bind '{}': {reason}", .path.display())]
    Denied {
        /// Which path.
        path: PathBuf,
        /// Who lacks what.
        reason: String,
    },
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
            ListenError::TooLong(_) => libc::ENAMETOOLONG,
            ListenError::Denied { .. } => libc::EACCES,
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
        if !fits_new(path) {
            return Err(ListenError::TooLong(path.to_owned()));
        }
        let address = Address::of_new(path).map_err(system("cannot name", path))?;
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
            .map_err(system("cannot create a socket for", path))?;
        match net::bind(&socket, &address.unix) {
            Err(Errno::ADDRINUSE) => {
                remove_if_stale(path)?;
                net::bind(&socket, &address.unix)
            }
            result => result,
        }
        .map_err(system("cannot bind", path))?;
        let file = SocketFile {
            path: path.to_owned(),
            identity: identity(path).map_err(system("cannot look at", path))?,
        };
        if let Err(error) = net::listen(&socket, BACKLOG) {
            file.remove();
            return Err(system("cannot listen on", path)(error));
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

/// What a failed system call comes to, which was to do `what` with `path`.
fn system<E: Into<io::Error>>(what: &'static str, path: &Path) -> impl Fn(E) -> ListenError {
    let path = path.to_owned();
    move |error| {
        let (path, error) = (path.clone(), error.into());
        match error.raw_os_error() {
            Some(libc::EACCES) => ListenError::Denied {
                reason: denied::reason(&path, Wanted::Create),
                path,
            },
            _ => ListenError::System { what, path, error },
        }
    }
}

/// Removes a socket that nobody listens on; refuses to touch anything else.
fn remove_if_stale(path: &Path) -> Result<(), ListenError> {
    let meta = match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        meta => meta.map_err(system("cannot look at", path))?,
    };
    if !meta.file_type().is_socket() {
        return Err(ListenError::NotASocket(path.to_owned()));
    }
    match connect(path) {
        Err(error) if error.raw_os_error() == Some(libc::ECONNREFUSED) => {
            log::info!(
                "'{}' is left over from a process that is gone; replacing it",
                path.display()
            );
            std::fs::remove_file(path).map_err(system("cannot remove the stale socket", path))
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
    fn a_socket_far_down_is_made_connected_to_recognised_when_stale_and_removed() {
        let dir = directory();
        let deep = dir.path().join("d".repeat(100)).join("d".repeat(100));
        std::fs::create_dir_all(&deep).unwrap();
        let path = deep.join("s".repeat(MAX_FAR_NAME));
        let stale = Listener::bind(&path).unwrap();
        let error = Listener::bind(&path).unwrap_err();
        assert!(matches!(error, ListenError::InUse(_)), "{error}");
        drop(stale);
        let listener = Listener::bind(&path).expect("nobody listens there any more");
        connect(&path).unwrap();
        assert!(listener.accept().unwrap().is_some());
        listener.file().remove();
        assert!(!path.exists());
    }

    #[test]
    fn a_name_too_long_for_a_socket_far_down_is_refused_by_name() {
        for (bytes, fits) in [(102, true), (103, false)] {
            let path = Path::new("/tmp").join("x".repeat(bytes));
            assert_eq!(fits_new(&path), fits, "{bytes}");
        }
        let far = Path::new("/tmp").join("d".repeat(100)).join("x".repeat(86));
        let error = Listener::bind(&far).unwrap_err();
        assert_eq!(error.errno(), libc::ENAMETOOLONG);
        assert!(error.to_string().ends_with("has at most 85"), "{error}");
    }

    #[test]
    fn a_missing_directory_is_an_error_that_names_the_path() {
        let error = Listener::bind(Path::new("/nonexistent/dir/s")).unwrap_err();
        assert_eq!(error.errno(), libc::ENOENT);
        assert!(error.to_string().contains("/nonexistent/dir/s"));
    }
}
