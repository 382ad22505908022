//! Addresses of the two foreign address spaces, as types that cannot be mixed up.

/// A guest physical address: what descriptors carry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GuestAddr(pub u64);

impl GuestAddr {
    /// The address `bytes` further on, or `None` past the end of the address space.
    pub fn checked_add(self, bytes: u64) -> Option<GuestAddr> {
        self.0.checked_add(bytes).map(GuestAddr)
    }
}

/// An address in the front-end's own address space: what ring addresses are given in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FrontendAddr(pub u64);

impl FrontendAddr {
    /// The address `bytes` further on, or `None` past the end of the address space.
    pub fn checked_add(self, bytes: u64) -> Option<FrontendAddr> {
        self.0.checked_add(bytes).map(FrontendAddr)
    }
}

/// One region of guest memory as the front-end describes it (vhost-user, "Memory region description").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegionDesc {
    /// Where the guest sees the region.
    pub guest: GuestAddr,
    /// Its length in bytes.
    pub size: u64,
    /// Where the front-end has it mapped.
    pub frontend: FrontendAddr,
    /// Where it starts in the file that came with it, in bytes.
    pub mmap_offset: u64,
}
