//! How much a test tries: all there is, or under Miri, which takes a thousand times as long, some of it. For tests alone.

/// `all`, or under Miri `some`.
pub(crate) const fn of<T: Copy>(all: T, some: T) -> T {
    if cfg!(miri) {
        some
    } else {
        all
    }
}
