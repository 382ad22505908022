//! What the tests of this folder share: threads that are another user.

use rustix::process::Uid;
use rustix::thread::set_thread_res_uid;

/// What `work` returns on a thread that is another user, with none of root's rights. None, with a word, where this process
/// may not become anybody.
pub(super) fn as_user<T: Send>(user: u32, work: impl FnOnce() -> T + Send) -> Option<T> {
    let become_and_work = move || {
        let user = Uid::from_raw(user);
        set_thread_res_uid(user, user, user).ok()?;
        Some(work())
    };
    let done = std::thread::scope(|scope| scope.spawn(become_and_work).join()).expect("no panic");
    if done.is_none() {
        eprintln!("SKIP: only root can be another user");
    }
    done
}
