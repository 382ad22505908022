//! Why the kernel said EACCES of a socket's path: who lacks which permission, and on what.

use std::fmt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{accessat, Access, AtFlags, CWD};
use rustix::process::geteuid;

/// What was to be done with a socket's path.
#[derive(Clone, Copy, Debug)]
pub(super) enum Wanted {
    /// Make a socket there.
    Create,
    /// Connect to the one that is there.
    Connect,
}

/// What stands in the way of the calling thread's user, in a sentence. It is looked for after the fact: somebody may have
/// put it right meanwhile.
pub(super) fn reason(path: &Path, wanted: Wanted) -> String {
    let user = geteuid().as_raw();
    let mut directories: Vec<&Path> = path.ancestors().skip(1).map(or_here).collect();
    directories.reverse();
    let closed = directories
        .iter()
        .find(|directory| lacks(directory, Access::EXEC_OK));
    let parent = directories.last().copied().unwrap_or(Path::new("/"));
    let refused = match (closed, wanted) {
        (Some(directory), _) => Some((*directory, "search")),
        (None, Wanted::Create) => lacks(parent, Access::WRITE_OK).then_some((parent, "create files in")),
        (None, Wanted::Connect) => lacks(path, Access::WRITE_OK).then_some((path, "write to")),
    };
    match refused {
        Some((place, what)) => format!("user {user} may not {what} '{}'{}", place.display(), Shown(place)),
        None => format!(
            "the file permissions allow it to user {user}; a security module may not (see the audit log)"
        ),
    }
}

/// The first directory of a relative path has no name.
fn or_here(directory: &Path) -> &Path {
    match directory.as_os_str().is_empty() {
        true => Path::new("."),
        false => directory,
    }
}

fn lacks(path: &Path, access: Access) -> bool {
    accessat(CWD, path, access, AtFlags::EACCESS) == Err(rustix::io::Errno::ACCESS)
}

/// Whose a file is and who may use it, in brackets, if that can be seen.
struct Shown<'a>(&'a Path);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match std::fs::metadata(self.0) {
            Ok(meta) => write!(
                f,
                " (user {}, group {}, mode {:04o})",
                meta.uid(),
                meta.gid(),
                meta.mode() & 0o7777
            ),
            Err(_) => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::port::testing::as_user;
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::UnixListener;

    #[test]
    fn who_lacks_what_on_which_part_of_the_path_is_named() {
        let top = tempfile::tempdir().unwrap();
        let allow = |path: &Path, mode| {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
        };
        let inner = top.path().join("inner");
        std::fs::create_dir(&inner).unwrap();
        let socket = inner.join("s");
        let _listens = UnixListener::bind(&socket).unwrap();
        allow(&socket, 0o600);
        let asked = |wanted| as_user(12345, || reason(&socket, wanted));
        let (top, inner) = (top.path(), inner.as_path());

        for (top_mode, inner_mode, wanted, place, what) in [
            (0o700, 0o755, Wanted::Connect, top, "search"),
            (0o755, 0o700, Wanted::Connect, inner, "search"),
            (0o755, 0o755, Wanted::Connect, &socket, "write to"),
            (0o755, 0o755, Wanted::Create, inner, "create files in"),
        ] {
            allow(top, top_mode);
            allow(inner, inner_mode);
            let start = format!("user 12345 may not {what} '{}'", place.display());
            let Some(text) = asked(wanted) else { return };
            assert!(text.starts_with(&start), "{text}");
        }
        allow(&socket, 0o666);
        let text = asked(Wanted::Connect).unwrap_or_default();
        assert!(text.contains("security module"), "{text}");
    }
}
