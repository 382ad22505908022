//! Guest memory: addresses, regions, and the only ways to touch guest bytes.
