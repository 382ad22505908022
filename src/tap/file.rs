//! Where a capture goes. The switch may have more rights than whoever asks for one, so it only ever makes new files, that
//! nobody else may read, and never by way of a link.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Component, Path, PathBuf};

/// The path for what was asked: a plain name in `directory`, or an absolute path.
///
/// # Errors
///
/// It is neither, or goes up.
pub(super) fn place(directory: &Path, asked: &str) -> Result<PathBuf, String> {
    let path = Path::new(asked);
    if path.components().any(|part| part == Component::ParentDir) {
        return Err(format!("{asked}: '..' is not allowed"));
    }
    let is_name = !asked.contains('/') && path.file_name().is_some();
    if !path.is_absolute() && !is_name {
        return Err(format!(
            "{asked}: neither an absolute path nor the name of a file in {}",
            directory.display()
        ));
    }
    Ok(directory.join(path))
}

/// The name for a capture of `port` that was given none: of this second.
pub(super) fn usual_name(port: &str, second: u64) -> String {
    let is_plain = |c: &char| c.is_ascii_alphanumeric() || ['-', '_'].contains(c);
    let name: String = port.chars().map(|c| if is_plain(&c) { c } else { '_' }).collect();
    format!("{name}-{second}.pcapng")
}

/// Makes the file.
///
/// # Errors
///
/// There is something of that name, be it a link, or the system does not want it.
pub(super) fn create(path: &Path) -> Result<File, String> {
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(path)
        .map_err(|error| format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{symlink, PermissionsExt};

    use super::*;

    #[test]
    fn a_name_is_in_the_directory_and_a_path_where_it_says() {
        let place = |asked| place(Path::new("/var/log"), asked);
        assert_eq!(place("a.pcapng"), Ok("/var/log/a.pcapng".into()));
        assert_eq!(place("/tmp/a"), Ok("/tmp/a".into()));
        for asked in ["", ".", "..", "a/b", "./a", "../a", "/tmp/../a", "a/../b"] {
            assert!(place(asked).is_err(), "{asked}");
        }
    }

    #[test]
    fn the_usual_name_is_a_plain_one_whatever_the_port_is_called() {
        assert_eq!(usual_name("vhu1-a_b", 12), "vhu1-a_b-12.pcapng");
        assert_eq!(usual_name("../../é", 12), "_______-12.pcapng");
    }

    #[test]
    fn a_file_is_new_private_and_no_link() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("new");
        let mode = create(&path).unwrap().metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let error = create(&path).unwrap_err();
        assert!(error.contains("exists"), "{error}");
        let (link, target) = (dir.path().join("link"), dir.path().join("target"));
        symlink(&target, &link).unwrap();
        assert!(create(&link).is_err());
        assert!(!target.exists());
    }
}
