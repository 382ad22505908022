//! Where server sockets live, from `other_config:vhost-sock-dir`.
//!
//! Whoever can write the database must not be able to place sockets just anywhere. So the directory is below the run
//! directory whatever the value starts with, unless the administrator has listed another where the database does not
//! reach: in the environment of ovs-vswitchd (`OVS_VHOST_SOCK_DIRS`).

use std::path::{Path, PathBuf};

use log::Level;

/// The directory, with the line stock writes about it. `listed` are those that the value may name, and what is below them.
pub fn socket_directory(
    rundir: &Path,
    listed: &[PathBuf],
    vhost_sock_dir: Option<&str>,
) -> (PathBuf, Level, String) {
    const NAME_MAX: usize = 255;
    let base = rundir.display();
    let Some(value) = vhost_sock_dir.filter(|v| v.len() <= NAME_MAX) else {
        let line = format!("No vhost-sock-dir provided - defaulting to {base}");
        return (rundir.to_owned(), Level::Info, line);
    };
    if value.contains("..") {
        let line = format!(
            "vhost-user sock directory request '{base}/{value}' has invalidcharacters '..' - using {base} instead."
        );
        return (rundir.to_owned(), Level::Error, line);
    }
    let below_rundir = rundir.join(value.trim_start_matches('/'));
    match listed_as(value, listed).or_else(|| below_rundir.is_dir().then(|| below_rundir.clone())) {
        Some(directory) => {
            let line = format!("User-provided vhost-sock-dir in use: {value}");
            (directory, Level::Info, line)
        }
        None => {
            let line = format!(
                "vhost-user sock directory '{}' does not exist.",
                below_rundir.display()
            );
            (below_rundir, Level::Error, line)
        }
    }
}

/// The directory that `value` is, if that is a listed one or below one: after every symbolic link on the way.
fn listed_as(value: &str, listed: &[PathBuf]) -> Option<PathBuf> {
    let path = Some(Path::new(value)).filter(|path| path.is_absolute())?;
    let directory = path.canonicalize().ok().filter(|path| path.is_dir())?;
    let is_home = |home: &PathBuf| {
        home.is_absolute() && home.canonicalize().is_ok_and(|home| directory.starts_with(home))
    };
    listed.iter().any(is_home).then_some(directory)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_socket_directory_never_leaves_the_run_directory() {
        let run = std::env::temp_dir();
        let directory = |value: Option<&str>| socket_directory(&run, &[], value).0;
        assert_eq!(directory(None), run);
        assert_eq!(directory(Some("../etc")), run);
        assert_eq!(directory(Some(&"x".repeat(256))), run);
        assert_eq!(directory(Some("/vm")), run.join("vm"));
        assert_eq!(socket_directory(&run, &[], Some("missing")).1, Level::Error);
    }

    #[test]
    fn a_listed_directory_and_what_is_below_it_may_be_named_and_nothing_else() {
        let top = tempfile::tempdir().unwrap();
        let top = top.path().canonicalize().unwrap();
        let path = |name: &str| top.join(name);
        for name in ["run", "listed/below", "other", "listed2"] {
            std::fs::create_dir_all(path(name)).unwrap();
        }
        std::os::unix::fs::symlink(path("other"), path("listed/out")).unwrap();
        let listed = [path("listed"), PathBuf::from("run")];
        let directory = |name: &str| socket_directory(&path("run"), &listed, path(name).to_str()).0;
        assert_eq!(directory("listed"), path("listed"));
        assert_eq!(directory("listed/below"), path("listed/below"));
        for elsewhere in [
            "other",
            "listed2",
            "listed/out",
            "listed/missing",
            "listed/../other",
        ] {
            let found = directory(elsewhere);
            assert!(found.starts_with(path("run")), "{elsewhere}: {}", found.display());
        }
    }
}
