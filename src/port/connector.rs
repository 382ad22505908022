//! The client's side of a socket file: one attempt to connect, and what stands in its way.

use std::io;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::path::Path;

use rustix::net::{self, AddressFamily, SocketFlags, SocketType};

use super::address::Address;
use super::denied::{self, Wanted};

/// Connects to `path` without blocking: a Unix socket answers at once, with EAGAIN when its backlog is
/// full.
pub(super) fn connect(path: &Path) -> io::Result<UnixStream> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    net::connect(&socket, &Address::of_existing(path)?.unix)?;
    Ok(socket.into())
}

/// Whether a failed attempt is the ordinary wait for a front-end to listen, or something that only a
/// person can put right; in that case, what.
pub(super) fn obstacle(path: &Path, error: &io::Error) -> Option<String> {
    let shown = path.display();
    match error.raw_os_error() {
        Some(libc::ENOENT | libc::EAGAIN) => None,
        // The kernel says ECONNREFUSED of every file that is no socket.
        Some(libc::ECONNREFUSED) => {
            let kind = std::fs::metadata(path).ok()?.file_type();
            let what = match () {
                () if kind.is_socket() => return None,
                () if kind.is_dir() => "a directory",
                () if kind.is_file() => "a regular file",
                () => "not a socket",
            };
            Some(format!(
                "options:vhost-server-path='{shown}' is {what}; it must be the front-end's socket"
            ))
        }
        Some(libc::EACCES) => Some(format!(
            "options:vhost-server-path='{shown}' cannot be connected to: {}",
            denied::reason(path, Wanted::Connect)
        )),
        _ => Some(format!(
            "options:vhost-server-path='{shown}' cannot be connected to: {error}"
        )),
    }
}

/// The system's words for an error, without the number that Rust appends.
pub(super) fn words(error: &io::Error) -> String {
    let text = error.to_string();
    match text.find(" (os error") {
        Some(end) => text[..end].to_owned(),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn obstacle_at(path: &Path) -> Option<String> {
        let error = connect(path).expect_err("nobody listens");
        obstacle(path, &error)
    }

    #[test]
    fn a_socket_that_is_not_there_or_not_listened_on_yet_is_only_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        assert_eq!(obstacle_at(&path), None);
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert_eq!(obstacle_at(&path), None);
    }

    #[test]
    fn a_socket_far_down_is_connected_to_and_waited_for_like_any_other() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("d".repeat(100)).join("d".repeat(100));
        let path = deep.join("s".repeat(200));
        assert_eq!(obstacle_at(&path), None);
        std::fs::create_dir_all(&deep).unwrap();
        assert_eq!(obstacle_at(&path), None);
        // Whoever makes it comes by a shorter way.
        let short = deep.join("s");
        let listener = crate::port::listener::Listener::bind(&short).unwrap();
        listener.listen().unwrap();
        std::fs::rename(&short, &path).unwrap();
        connect(&path).expect("it is listened on");
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "").unwrap();
        assert!(obstacle_at(&path).unwrap().contains("is a regular file"));
    }

    #[test]
    fn a_directory_a_file_and_a_file_on_the_way_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, "").unwrap();
        assert!(obstacle_at(dir.path()).unwrap().contains("is a directory"));
        assert!(obstacle_at(&file).unwrap().contains("is a regular file"));
        assert!(obstacle_at(&file.join("s")).unwrap().contains("Not a directory"));
    }
}
