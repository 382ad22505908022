//! Every chain that four descriptors can form, against the plainest walk there is.

use super::*;
use crate::effort;
use crate::memory::MemTable;
use crate::model::GuestMemory;

const SIZE: u16 = 4;
/// Bytes of each buffer, and of each indirect table: two entries.
const LEN: u32 = 32;
const TABLE: GuestAddr = GuestAddr(0x1000);

/// A ring that is nothing but its descriptors.
struct Toy([Desc; SIZE as usize]);

impl DescRing for Toy {
    fn size(&self) -> u16 {
        SIZE
    }
    fn desc(&self, index: u16) -> Option<Desc> {
        self.0.get(usize::from(index)).copied()
    }
    fn following(&self, _: u16, desc: &Desc) -> u16 {
        desc.next
    }
    fn entry(bytes: [u8; DESC_SIZE as usize], _: u16, _: u16) -> Desc {
        Desc::from_bytes(bytes)
    }
    fn prefetch_desc(&self, _: u16) {}
}

/// A descriptor of each kind: any flags, and where it matters, any next up to beyond the ring.
fn descs() -> Vec<Desc> {
    let all = (0..8).flat_map(|flags| (0..SIZE + 2).map(move |next| (flags, next)));
    all.filter(|(flags, next)| flags & VIRTQ_DESC_F_NEXT != 0 || *next == 0)
        .map(|(flags, next)| Desc {
            addr: TABLE.0,
            len: LEN,
            flags,
            next,
        })
        .collect()
}

/// The bytes of the chain that begins with descriptor 0, or what is wrong with it, by the words of 2.7.5.
fn naive(ring: &[Desc], write: u16) -> Result<u32, ChainError> {
    let (mut at, mut walked, mut bytes) = (0_u16, 0, 0);
    loop {
        let Some(desc) = ring.get(usize::from(at)) else {
            return Err(ChainError::OutOfTable {
                index: at,
                entries: SIZE,
            });
        };
        // A table has two more descriptors, which are in order; that it is one counts for nothing.
        let indirect = desc.flags & VIRTQ_DESC_F_INDIRECT != 0;
        if indirect && desc.flags & VIRTQ_DESC_F_NEXT != 0 {
            return Err(ChainError::IndirectWithNext);
        }
        walked += if indirect { 2 } else { 1 };
        if walked > SIZE {
            return Err(ChainError::TooLong(SIZE));
        }
        if indirect {
            return Ok(bytes + 2 * LEN);
        }
        if desc.flags & VIRTQ_DESC_F_WRITE != write {
            return Err(ChainError::Direction {
                addr: desc.addr,
                len: desc.len,
            });
        }
        bytes += LEN;
        if desc.flags & VIRTQ_DESC_F_NEXT == 0 {
            return Ok(bytes);
        }
        at = desc.next;
    }
}

fn walk<D: Direction>(ring: &Toy, table: &MemTable) -> Result<u32, ChainError> {
    let mut cursor = table.cursor(0).unwrap();
    let mut chain = Chain::<_, D>::new(ring, 0, ring.0[0], true);
    let mut bytes = 0;
    while let Some(slice) = chain.next(&mut cursor)? {
        bytes += slice.len();
    }
    Ok(bytes)
}

fn every_chain<D: Direction>() {
    let memory = GuestMemory::new(0x1000);
    let entry = |flags, next| Desc {
        addr: TABLE.0,
        len: LEN,
        flags: flags | D::WRITE,
        next,
    };
    let entries = [entry(VIRTQ_DESC_F_NEXT, 1), entry(0, 0)].map(|desc| desc.to_bytes());
    memory.write(TABLE, &entries.concat());
    let (table, descs) = (memory.table(), descs());
    let (mut good, mut count) = (0, 0);
    let kinds = descs.len();
    for number in (0..kinds.pow(4)).step_by(effort::of(1, 4999)) {
        let ring = Toy([1, kinds, kinds.pow(2), kinds.pow(3)].map(|place| descs[number / place % kinds]));
        let walked = walk::<D>(&ring, &table);
        assert_eq!(walked, naive(&ring.0, D::WRITE), "{:?}", ring.0);
        good += usize::from(walked.is_ok());
        count += 1;
    }
    assert!(good > count / 50 && good < count, "{good} of {count}");
}

#[test]
fn every_chain_of_four_descriptors_is_taken_or_refused_as_the_specification_says() {
    every_chain::<Readable>();
    every_chain::<Writable>();
}
