//! What goes through the switch. Between testpmd's ports frames go round: they are laid into the rings once, and are forwarded
//! from then on.

use anyhow::Result;

use crate::testpmd::Testpmd;

/// Bytes of the Ethernet frame check sequence.
const FCS: u32 = 4;
/// Packets of testpmd's bursts while it forwards.
const BURST: u32 = 32;
/// What fits into one of its packet buffers, with room to spare.
const SEGMENT: u32 = 2000;

/// Frames of one size: how many from each queue of each port, in bursts of up to [`BURST`].
#[derive(Clone, Copy)]
struct Run {
    bursts: u32,
    packets: u32,
    /// Bytes, with the checksum that Ethernet has on a wire, as sizes are always given; it is not sent here.
    bytes: u32,
}

/// A load, by the name that its row in a table has.
#[derive(Clone, Copy)]
pub struct Load {
    pub name: &'static str,
    runs: &'static [Run],
    /// Many flows, not one for each port.
    pub flows: bool,
}

/// Frames of one size. Four bursts each way: the poll thread always finds some, and no ring ever overflows.
macro_rules! size {
    ($bytes:literal) => {
        Load {
            name: stringify!($bytes),
            runs: &[Run {
                bursts: 4,
                packets: BURST,
                bytes: $bytes,
            }],
            flows: false,
        }
    };
}

pub const B64: Load = size!(64);
pub const B256: Load = size!(256);
pub const B512: Load = size!(512);
pub const B1518: Load = size!(1518);
/// For ports and packet buffers that take so much.
pub const B9000: Load = size!(9000);

/// Seven small frames to four middling and a large one, an old mean of the Internet.
pub const IMIX: Load = Load {
    name: "IMIX",
    runs: &[
        Run {
            bursts: 7,
            packets: 8,
            bytes: 64,
        },
        Run {
            bursts: 4,
            packets: 8,
            bytes: 594,
        },
        Run {
            bursts: 1,
            packets: 8,
            bytes: 1518,
        },
    ],
    flows: false,
};

/// Small frames of a thousand flows.
pub const FLOWS: Load = Load {
    name: "64, flows",
    flows: true,
    ..B64
};

/// As large as a frame gets whose segments somebody else cuts; quick guests have no other.
pub const B64K: Load = Load {
    name: "64K",
    runs: &[],
    flows: false,
};

impl Load {
    /// Lays the frames into the rings and has them forwarded.
    pub fn start(&self, testpmd: &mut Testpmd) -> Result<()> {
        // Else each start begins with throwing away what is in the rings.
        testpmd.command("set flush_rx off", "testpmd> ")?;
        for run in self.runs {
            testpmd.command(&format!("set txpkts {}", segments(run.bytes - FCS)), "testpmd> ")?;
            testpmd.command(&format!("set burst {}", run.packets), "testpmd> ")?;
            if self.flows {
                // Until it is stopped, which is more than the rings hold.
                testpmd.command("set fwd flowgen", "Set flowgen packet forwarding mode")?;
                testpmd.command("start", "packet forwarding")?;
            } else {
                testpmd.command("set fwd io", "Set io packet forwarding mode")?;
                testpmd.command(&format!("start tx_first {}", run.bursts), "packet forwarding")?;
            }
            testpmd.command("stop", "Done.")?;
        }
        testpmd.command(&format!("set burst {BURST}"), "testpmd> ")?;
        testpmd.command("set fwd io", "Set io packet forwarding mode")?;
        testpmd.command("start", "packet forwarding").map(drop)
    }
}

/// A frame of so many bytes as testpmd wants to be told of it: the lengths of its pieces.
fn segments(frame: u32) -> String {
    let pieces = (0..frame).step_by(SEGMENT as usize);
    let lengths: Vec<String> = pieces.map(|at| (frame - at).min(SEGMENT).to_string()).collect();
    lengths.join(",")
}
