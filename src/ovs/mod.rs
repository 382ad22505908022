//! The border with ovs-vswitchd.
