//! The server's side of a socket file: made, protected, recognised when stale, and removed only when it is ours.
//!
//! A vswitchd that was killed leaves its sockets behind, and `bind` refuses a path that exists. What
//! stands there is removed only when it is a socket that nobody answers on; a socket that is alive and
//! anything that is not a socket belong to somebody else.

use std::fs::{File, Metadata};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use rustix::fs::{self, AtFlags, Gid, Mode, OFlags, Uid};
use rustix::io::Errno;
use rustix::net::{self, AddressFamily, SocketFlags, SocketType};

use super::address::{fits_new, of_descriptor, Address, MAX_FAR_NAME};
use super::connector::connect;
use super::denied::{self, Wanted};
use super::protection::Protection;

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
    /// The file cannot be given to whom it should belong to. Its permissions are as they were asked for.
    #[error("the owner of '{}' stays as it is: {error}", .path.display())]
    Owner {
        /// Which file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// The file that was made is not there any more, or another has its name.
    #[error("'{}' is not the socket that was made there", .0.display())]
    Replaced(PathBuf),
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
            ListenError::Replaced(_) => libc::ENOENT,
            ListenError::InUse(_) => libc::EADDRINUSE,
            ListenError::Owner { error, .. } | ListenError::System { error, .. } => {
                error.raw_os_error().unwrap_or(libc::EIO)
            }
        }
    }
}

/// A socket and the file that names it. Nobody can connect to it before [`listen`](Self::listen).
#[derive(Debug)]
pub(super) struct Listener {
    socket: OwnedFd,
    file: SocketFile,
}

/// The file in the file system: removed by whoever made it, and only while it is the one that was made.
#[derive(Clone, Debug)]
pub(super) struct SocketFile {
    path: PathBuf,
    /// As the system made it.
    born: Metadata,
}

impl SocketFile {
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Removes the file, unless something else has taken its name.
    pub(super) fn remove(&self) {
        if std::fs::symlink_metadata(&self.path).is_ok_and(|now| self.is(&now)) {
            // A failure leaves a stale socket, which the next listener recognises.
            let _ = std::fs::remove_file(&self.path);
        }
    }

    /// Whose file it is from now on, and who may connect. In between nobody may: no moment has the old permissions with
    /// the new owner. Others may write to the directory and exchange what has this name, so it is the file that is
    /// changed, and only if it is ours.
    pub(super) fn protect(&self, wanted: &Protection) -> Result<(), ListenError> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file: File = fs::open(&self.path, flags, Mode::empty())
            .map_err(system("cannot open", &self.path))?
            .into();
        let now = file.metadata().map_err(system("cannot look at", &self.path))?;
        if !self.is(&now) {
            return Err(ListenError::Replaced(self.path.clone()));
        }
        let file = OwnedFd::from(file);
        let allow = |mode| {
            fs::chmod(of_descriptor(&file), Mode::from_raw_mode(mode))
                .map_err(system("cannot set the permissions of", &self.path))
        };
        allow(0)?;
        let owner = wanted.owner.unwrap_or(self.born.uid());
        let group = wanted.group.unwrap_or(self.born.gid());
        let (user, group) = (Uid::from_raw(owner), Gid::from_raw(group));
        let given = fs::chownat(&file, "", Some(user), Some(group), AtFlags::EMPTY_PATH).map_err(|error| {
            ListenError::Owner {
                path: self.path.clone(),
                error: error.into(),
            }
        });
        allow(wanted.mode.unwrap_or(self.born.mode() & 0o777))?;
        given
    }

    fn is(&self, other: &Metadata) -> bool {
        (other.dev(), other.ino()) == (self.born.dev(), self.born.ino())
    }
}

impl Listener {
    /// Makes a socket at `path`. A stale one there is replaced. Does not block.
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
            born: std::fs::symlink_metadata(path).map_err(system("cannot look at", path))?,
        };
        Ok(Listener { socket, file })
    }

    /// Lets front-ends in from now on.
    pub(super) fn listen(&self) -> Result<(), ListenError> {
        net::listen(&self.socket, BACKLOG).map_err(system("cannot listen on", &self.file.path))
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
    use crate::port::testing::as_user;
    use std::os::unix::net::{UnixDatagram, UnixListener};

    fn directory() -> tempfile::TempDir {
        tempfile::tempdir().unwrap()
    }

    /// A socket that is listened on.
    fn listening(path: &Path) -> Listener {
        let listener = Listener::bind(path).expect("nobody listens there");
        listener.listen().unwrap();
        listener
    }

    /// Owner, group and permissions.
    fn of(path: &Path) -> (u32, u32, u32) {
        let meta = path.symlink_metadata().unwrap();
        (meta.uid(), meta.gid(), meta.mode() & 0o7777)
    }

    #[test]
    fn a_stale_socket_is_replaced() {
        let dir = directory();
        let path = dir.path().join("s");
        drop(UnixListener::bind(&path).unwrap());
        let listener = listening(&path);
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
        let stale = listening(&path);
        let error = Listener::bind(&path).unwrap_err();
        assert!(matches!(error, ListenError::InUse(_)), "{error}");
        drop(stale);
        let listener = listening(&path);
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

    #[test]
    fn nobody_connects_between_bind_and_listen_whatever_the_permissions_are() {
        let dir = directory();
        let path = dir.path().join("s");
        let listener = Listener::bind(&path).unwrap();
        let open = Protection {
            mode: Some(0o777),
            ..Protection::default()
        };
        listener.file().protect(&open).unwrap();
        let refused = |result: io::Result<UnixStream>| result.unwrap_err().kind();
        assert_eq!(refused(connect(&path)), io::ErrorKind::ConnectionRefused);
        listener.listen().unwrap();
        connect(&path).unwrap();
    }

    #[test]
    fn a_socket_has_the_owner_and_the_permissions_asked_for_and_gets_its_own_back() {
        let dir = directory();
        let path = dir.path().join("s");
        std::fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let listener = listening(&path);
        let born = of(&path);
        let others = Protection {
            owner: Some(12345),
            group: Some(23456),
            mode: Some(0o600),
        };
        if as_user(12345, || ()).is_none() {
            return;
        }
        listener.file().protect(&others).unwrap();
        assert_eq!(of(&path), (12345, 23456, 0o600));
        let may_connect = |user| as_user(user, || connect(&path).is_ok());
        assert_eq!(
            (may_connect(12345), may_connect(12346)),
            (Some(true), Some(false))
        );
        listener.file().protect(&Protection::default()).unwrap();
        assert_eq!(of(&path), born);
    }

    #[test]
    fn who_may_not_give_a_socket_away_still_sets_its_permissions() {
        let dir = directory();
        std::fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
        let path = dir.path().join("s");
        let wanted = Protection {
            owner: Some(0),
            mode: Some(0o640),
            ..Protection::default()
        };
        let failed = as_user(12345, || listening(&path).file().protect(&wanted).unwrap_err());
        let Some(error) = failed else { return };
        assert!(matches!(error, ListenError::Owner { .. }), "{error}");
        assert_eq!((of(&path).0, of(&path).2), (12345, 0o640));
    }

    #[test]
    fn what_took_the_sockets_name_is_not_given_to_anybody() {
        let dir = directory();
        let path = dir.path().join("s");
        let listener = Listener::bind(&path).unwrap();
        let victim = dir.path().join("victim");
        std::fs::write(&victim, "").unwrap();
        std::fs::remove_file(&path).unwrap();
        let wanted = Protection {
            mode: Some(0o777),
            ..Protection::default()
        };
        let before = of(&victim);
        for attack in [
            std::fs::hard_link,
            std::os::unix::fs::symlink::<&PathBuf, &PathBuf>,
        ] {
            attack(&victim, &path).unwrap();
            let error = listener.file().protect(&wanted).unwrap_err();
            assert!(matches!(error, ListenError::Replaced(_)), "{error}");
            std::fs::remove_file(&path).unwrap();
        }
        assert_eq!(of(&victim), before);
    }
}
