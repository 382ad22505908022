//! The vhost-user protocol, back-end side. Knows messages, never a ring.
