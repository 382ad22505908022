//! Who may connect to a server port's socket: whose file it is and with which permissions, and which users are let in.
//!
//! Users and groups have names or numbers. A name is looked up when main takes the options, and only there: it may take
//! as long as the directory service behind it (NSS), which must hold up neither packets nor front-ends.

use std::fmt;
use std::os::fd::AsFd;

use nix::unistd::{Group, User};
use rustix::net::sockopt::socket_peercred;

/// A socket's file as the operator wants it; what is not said is as the system makes it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Protection {
    pub(super) owner: Option<u32>,
    pub(super) group: Option<u32>,
    /// Permission bits.
    pub(super) mode: Option<u32>,
}

/// chown() takes it for "leave it as it is".
const NOBODY_AT_ALL: u32 = u32::MAX;

/// The number of a user, from its name or number.
pub(super) fn user(text: &str) -> Result<u32, String> {
    number(text).unwrap_or_else(|| match User::from_name(text) {
        Ok(Some(user)) => Ok(user.uid.as_raw()),
        Ok(None) => Err("is no user".into()),
        Err(error) => Err(format!("cannot be looked up: {}", error.desc())),
    })
}

/// The number of a group, from its name or number.
pub(super) fn group(text: &str) -> Result<u32, String> {
    number(text).unwrap_or_else(|| match Group::from_name(text) {
        Ok(Some(group)) => Ok(group.gid.as_raw()),
        Ok(None) => Err("is no group".into()),
        Err(error) => Err(format!("cannot be looked up: {}", error.desc())),
    })
}

/// What consists of digits is a number, right or wrong: no name does.
fn number(text: &str) -> Option<Result<u32, String>> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| match text.parse() {
        Ok(number) if number != NOBODY_AT_ALL => Ok(number),
        _ => Err(format!("is not a number below {NOBODY_AT_ALL}")),
    })
}

/// Permission bits, from octal digits.
pub(super) fn mode(text: &str) -> Result<u32, String> {
    let octal = text.bytes().all(|byte| byte.is_ascii_digit());
    match u32::from_str_radix(text, 8) {
        Ok(mode) if octal && mode <= 0o777 => Ok(mode),
        _ => Err("is not an octal number from 0 to 777".into()),
    }
}

/// The numbers of users from a list with commas. What is no user is complained of, and lets nobody in.
pub(super) fn users(text: &str) -> (Vec<u32>, Result<(), String>) {
    let (mut known, mut wrong) = (Vec::new(), Vec::new());
    for name in text.split(',').map(str::trim).filter(|name| !name.is_empty()) {
        match user(name) {
            Ok(number) => known.push(number),
            Err(error) => wrong.push(format!("'{name}' {error}")),
        }
    }
    let result = match wrong.is_empty() {
        true => Ok(()),
        false => Err(wrong.join(", ")),
    };
    (known, result)
}

/// A front-end that is not let in.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Stranger {
    /// User and process.
    User(u32, i32),
    /// The system does not say who.
    Unknown,
}

impl Stranger {
    /// Whoever is at the other end of `socket`, if not one of the users that are let in. None: whoever may connect is.
    pub(super) fn among(allowed: Option<&[u32]>, socket: impl AsFd) -> Option<Stranger> {
        let allowed = allowed?;
        match socket_peercred(socket) {
            Ok(peer) if allowed.contains(&peer.uid.as_raw()) => None,
            Ok(peer) => Some(Stranger::User(peer.uid.as_raw(), peer.pid.as_raw_nonzero().get())),
            Err(_) => Some(Stranger::Unknown),
        }
    }
}

impl fmt::Display for Stranger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Stranger::User(user, process) => write!(f, "user {user} (process {process})"),
            Stranger::Unknown => f.write_str("an unknown user"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::port::testing::as_user;
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::{UnixListener, UnixStream};

    #[test]
    fn users_and_groups_have_names_or_numbers() {
        assert_eq!((user("root"), group("root")), (Ok(0), Ok(0)));
        assert_eq!((user("12345"), group("12345")), (Ok(12345), Ok(12345)));
        assert_eq!(user("no-such-user"), Err("is no user".into()));
        assert_eq!(group("no-such-group"), Err("is no group".into()));
        for bad in ["4294967295", "4294967296"] {
            assert!(user(bad).unwrap_err().starts_with("is not a number"), "{bad}");
        }
        for bad in ["", "-1", "+1", " 1"] {
            assert!(user(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn who_connects_is_the_user_that_it_was_then_whatever_it_becomes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let listener = UnixListener::bind(&path).unwrap();
        let everybody = |path| std::fs::set_permissions(path, PermissionsExt::from_mode(0o777)).unwrap();
        everybody(dir.path());
        everybody(&path);
        let Some(stream) = as_user(12345, || UnixStream::connect(&path).unwrap()) else {
            return;
        };
        // The thread is gone; the process, which has its end of the socket, is root's.
        let (accepted, _) = listener.accept().unwrap();
        assert_eq!(Stranger::among(Some(&[7, 12345]), &accepted), None);
        let stranger = Stranger::among(Some(&[0]), &accepted).expect("not root");
        assert!(
            stranger.to_string().starts_with("user 12345 (process "),
            "{stranger}"
        );
        assert!(Stranger::among(Some(&[]), &accepted).is_some());
        assert_eq!(Stranger::among(None, &accepted), None);
        drop(stream);
    }

    #[test]
    fn a_mode_is_octal_and_has_permissions_only() {
        assert_eq!(
            (mode("0660"), mode("600"), mode("0")),
            (Ok(0o660), Ok(0o600), Ok(0))
        );
        for bad in ["", "rw", "888", "4755", "0o660", "+660", "-1"] {
            assert!(mode(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn of_a_list_of_users_those_that_exist_are_taken_and_the_others_named() {
        assert_eq!(users("root, 107,64055"), (vec![0, 107, 64055], Ok(())));
        assert_eq!(users(""), (vec![], Ok(())));
        let wrong = "'no-such-user' is no user".to_owned();
        assert_eq!(users("no-such-user,7"), (vec![7], Err(wrong)));
    }
}
