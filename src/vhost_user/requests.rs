//! The one table of requests (vhost-user, "Front-end message types").
//!
//! A row says what a request must look like before anything reads it: how long its payload is, how many
//! file descriptors come with it, what must have been negotiated, and how it is answered. Its decoder then
//! turns the proven bytes into a value whose fields are in range, and nothing behind it checks them again.
//! Requests out of a sensible order (a ring before its memory) are for the device to judge.

use std::os::fd::OwnedFd;

use super::config_space;
use super::decode::{self, Decoded, Decoder, Parts, VRING_NOFD};
use super::features::ProtocolFeatures;
use super::inflight::{INFLIGHT_SIZE, PADDED_INFLIGHT_SIZE};
use super::iotlb::{iotlb_msg, IOTLB_SIZE};
use super::malformed::Malformed;
use super::message::{
    Fields, CONFIG_HEADER_SIZE, LOG_SIZE, MAX_REGIONS, MEM_TABLE_HEADER_SIZE, REGION_SIZE,
    SINGLE_REGION_SIZE, U64_SIZE, VRING_ADDR_SIZE, VRING_STATE_SIZE,
};
use super::state::TRANSFER_SIZE;

/// How long the payload of a request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PayloadRule {
    /// Exactly so many bytes.
    Exact(usize),
    /// A memory regions description, exactly as long as its region count says; or [`POSTCOPY_ACK`].
    MemTable,
    /// An in-flight description, padded as C has it or not.
    Inflight,
    /// A part of the configuration space, exactly as long as it says.
    Config,
    /// A single memory region description; or [`POSTCOPY_ACK`].
    Region,
}

/// What a front-end sends, under the number of the request it is about, when it has taken note of the addresses that
/// its regions have here (post-copy only): a 64-bit zero.
pub const POSTCOPY_ACK: [u8; U64_SIZE] = [0; U64_SIZE];

impl PayloadRule {
    fn check(self, payload: &[u8]) -> Result<(), Malformed> {
        let expected = match self {
            PayloadRule::Exact(size) => size,
            PayloadRule::Inflight if payload.len() == INFLIGHT_SIZE => INFLIGHT_SIZE,
            PayloadRule::Inflight => PADDED_INFLIGHT_SIZE,
            PayloadRule::Config if payload.len() < CONFIG_HEADER_SIZE => CONFIG_HEADER_SIZE,
            PayloadRule::Config => config_space::payload_size(payload)?,
            PayloadRule::MemTable | PayloadRule::Region if payload == POSTCOPY_ACK => U64_SIZE,
            PayloadRule::Region => SINGLE_REGION_SIZE,
            PayloadRule::MemTable if payload.len() < MEM_TABLE_HEADER_SIZE => MEM_TABLE_HEADER_SIZE,
            PayloadRule::MemTable => MEM_TABLE_HEADER_SIZE + region_count(payload)? * REGION_SIZE,
        };
        match payload.len() {
            got if got == expected => Ok(()),
            got => Err(Malformed::Payload { got, expected }),
        }
    }
}

#[cfg(any(test, feature = "model"))]
impl PayloadRule {
    /// Whether a payload passes.
    pub(super) fn admits(self, payload: &[u8]) -> bool {
        self.check(payload).is_ok()
    }
}

/// The region count of a memory regions description, 1 to [`MAX_REGIONS`].
fn region_count(payload: &[u8]) -> Result<usize, Malformed> {
    let count = Fields::new(payload).u32()?;
    match usize::try_from(count) {
        Ok(regions @ 1..=MAX_REGIONS) => Ok(regions),
        _ => Err(Malformed::RegionCount(count)),
    }
}

/// How many file descriptors come with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FdRule {
    /// None.
    None,
    /// Exactly one.
    One,
    /// One for a region; none for an acknowledgement.
    Region,
    /// None, or one that is closed unused (REM_MEM_REG, for front-ends that send it wrongly).
    Ignored,
    /// One, unless bit 8 of the payload says that there is none.
    Vring,
    /// One for each region of the memory table; none for an acknowledgement.
    PerRegion,
}

impl FdRule {
    /// Checks the count; the payload has passed its own rule.
    fn check(self, payload: &[u8], got: usize) -> Result<(), Malformed> {
        let (min, max) = match self {
            FdRule::None => (0, 0),
            FdRule::Ignored => (0, 1),
            FdRule::Vring if Fields::new(payload).u64()? & VRING_NOFD != 0 => (0, 0),
            FdRule::Vring => (1, 1),
            FdRule::One => (1, 1),
            FdRule::PerRegion | FdRule::Region if payload == POSTCOPY_ACK => (0, 0),
            FdRule::Region => (1, 1),
            FdRule::PerRegion => region_count(payload).map(|count| (count, count))?,
        };
        match (min..=max).contains(&got) {
            true => Ok(()),
            false => Err(Malformed::Fds { got, min, max }),
        }
    }
}

/// What must have been settled before a request is legal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gate {
    /// Always legal.
    Open,
    /// The back-end offers `VHOST_USER_F_PROTOCOL_FEATURES`; it need not be acknowledged yet. This is all
    /// that can be asked of SET_VRING_ENABLE, which QEMU sends before SET_FEATURES.
    ProtocolFeatures,
    /// This protocol feature is negotiated.
    Negotiated(ProtocolFeatures),
}

/// What a request is answered with when it succeeds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Nothing, or an acknowledgement when REPLY_ACK is negotiated and the sender asks.
    Ack,
    /// Always a 64-bit number.
    U64,
    /// Always a vring state description.
    VringState,
    /// Always an in-flight description, with its buffer.
    Inflight,
    /// Always the same part of the configuration space, or none of it.
    Config,
    /// Always the payload it came with. The specification says that SET_LOG_BASE is answered, and not with what: QEMU
    /// takes anything, rust-vmm's front-end a log description.
    Echo,
    /// As `Ack`; while post-copy listens, the same regions with the addresses they have here.
    AckOrRegions,
    /// Nothing, and a file descriptor with it.
    Fd,
}

impl Answer {
    /// Whether success need not be told, so that a failure can be told in its place.
    pub fn is_acknowledgement(self) -> bool {
        matches!(self, Answer::Ack | Answer::AckOrRegions)
    }
}

/// The rules of a request that this version handles.
pub struct Rule {
    /// How long its payload is.
    pub payload: PayloadRule,
    /// How many file descriptors come with it.
    pub fds: FdRule,
    /// What must have been negotiated.
    pub gate: Gate,
    /// How it is answered.
    pub answer: Answer,
    decode: Decoder,
}

impl Rule {
    /// Proves payload and descriptors against the rules and decodes them. `vrings` is how many vrings the
    /// device has. Descriptors that the request does not keep are closed here.
    pub(super) fn decode(
        &self,
        payload: &[u8],
        fds: Vec<OwnedFd>,
        vrings: u32,
    ) -> Result<Decoded, Malformed> {
        self.payload.check(payload)?;
        self.fds.check(payload, fds.len())?;
        (self.decode)(Parts {
            fields: Fields::new(payload),
            fds,
            vrings,
        })
    }
}

/// A row of the table.
pub struct Row {
    /// Number on the wire.
    pub id: u32,
    /// The specification's name.
    pub name: &'static str,
    /// How it is handled, or `None` for a request that this version refuses.
    pub rule: Option<Rule>,
}

/// The row of a request number, if the specification has that number.
pub fn row(id: u32) -> Option<&'static Row> {
    TABLE.get(usize::try_from(id).ok()?)
}

/// The specification's name of a request number, for log lines.
pub fn name(id: u32) -> &'static str {
    row(id).map_or("unknown request", |row| row.name)
}

const fn on(
    id: u32,
    name: &'static str,
    payload: PayloadRule,
    fds: FdRule,
    gate: Gate,
    answer: Answer,
    decode: Decoder,
) -> Row {
    Row {
        id,
        name,
        rule: Some(Rule {
            payload,
            fds,
            gate,
            answer,
            decode,
        }),
    }
}

const fn off(id: u32, name: &'static str) -> Row {
    Row { id, name, rule: None }
}

const EMPTY: PayloadRule = PayloadRule::Exact(0);
const NUMBER: PayloadRule = PayloadRule::Exact(U64_SIZE);
const TRANSFER: PayloadRule = PayloadRule::Exact(TRANSFER_SIZE);
const STATE: PayloadRule = PayloadRule::Exact(VRING_STATE_SIZE);
const ADDR: PayloadRule = PayloadRule::Exact(VRING_ADDR_SIZE);
const LOG: PayloadRule = PayloadRule::Exact(LOG_SIZE);
const PAGEFAULT: Gate = Gate::Negotiated(ProtocolFeatures::PAGEFAULT);
const IOTLB: PayloadRule = PayloadRule::Exact(IOTLB_SIZE);
const MQ: Gate = Gate::Negotiated(ProtocolFeatures::MQ);
const SHMFD: Gate = Gate::Negotiated(ProtocolFeatures::LOG_SHMFD);
const RARP: Gate = Gate::Negotiated(ProtocolFeatures::RARP);
const NET_MTU: Gate = Gate::Negotiated(ProtocolFeatures::NET_MTU);
const BACKEND: Gate = Gate::Negotiated(ProtocolFeatures::BACKEND_REQ);
const RESET: Gate = Gate::Negotiated(ProtocolFeatures::RESET_DEVICE);
const INFLIGHT: Gate = Gate::Negotiated(ProtocolFeatures::INFLIGHT_SHMFD);
const CONFIG: Gate = Gate::Negotiated(ProtocolFeatures::CONFIG);
const MOVES: Gate = Gate::Negotiated(ProtocolFeatures::DEVICE_STATE);
const SLOTS: Gate = Gate::Negotiated(ProtocolFeatures::CONFIGURE_MEM_SLOTS);
const STATUS: Gate = Gate::Negotiated(ProtocolFeatures::STATUS);

/// Every request the specification numbers, at the index of its number.
#[rustfmt::skip] // one row a line
pub static TABLE: [Row; 45] = {
    use config_space::{get_config, set_config};
    use super::inflight::{get_inflight_fd, set_inflight_fd};
    use super::state::set_device_state_fd;
    use decode::*;
    use Answer::{Ack, AckOrRegions, Echo, Fd, VringState, U64};
    use FdRule::{Ignored, None, One, PerRegion, Vring};
    use Gate::{Open, ProtocolFeatures as PF};
    use PayloadRule::{Config, Inflight, MemTable, Region};
    [
    // QEMU's acknowledgement when it found no region to speak of: it forgets to say what it is about.
    on(  0, "VHOST_USER_NONE",                  NUMBER,   None,      PAGEFAULT, Ack, postcopy_ack),
    on(  1, "VHOST_USER_GET_FEATURES",          EMPTY,    None,      Open,    U64, |_| own(Own::GetFeatures)),
    on(  2, "VHOST_USER_SET_FEATURES",          NUMBER,   None,      Open,    Ack, set_features),
    on(  3, "VHOST_USER_SET_OWNER",             EMPTY,    None,      Open,    Ack, |_| device(Request::SetOwner)),
    on(  4, "VHOST_USER_RESET_OWNER",           EMPTY,    None,      Open,    Ack, |_| device(Request::ResetOwner)),
    on(  5, "VHOST_USER_SET_MEM_TABLE",         MemTable, PerRegion, Open,    AckOrRegions, set_mem_table),
    on(  6, "VHOST_USER_SET_LOG_BASE",          LOG,      One,       SHMFD,   Echo, set_log_base),
    on(  7, "VHOST_USER_SET_LOG_FD",            EMPTY,    One,       Open,    Ack, set_log_fd),
    on(  8, "VHOST_USER_SET_VRING_NUM",         STATE,    None,      Open,    Ack, set_vring_num),
    on(  9, "VHOST_USER_SET_VRING_ADDR",        ADDR,     None,      Open,    Ack, set_vring_addr),
    on( 10, "VHOST_USER_SET_VRING_BASE",        STATE,    None,      Open,    Ack, set_vring_base),
    on( 11, "VHOST_USER_GET_VRING_BASE",        STATE,    None,      Open,    VringState, get_vring_base),
    on( 12, "VHOST_USER_SET_VRING_KICK",        NUMBER,   Vring,     Open,    Ack, set_vring_kick),
    on( 13, "VHOST_USER_SET_VRING_CALL",        NUMBER,   Vring,     Open,    Ack, set_vring_call),
    on( 14, "VHOST_USER_SET_VRING_ERR",         NUMBER,   Vring,     Open,    Ack, set_vring_err),
    on( 15, "VHOST_USER_GET_PROTOCOL_FEATURES", EMPTY,    None,      PF,      U64, |_| own(Own::GetProtocolFeatures)),
    on( 16, "VHOST_USER_SET_PROTOCOL_FEATURES", NUMBER,   None,      PF,      Ack, set_protocol_features),
    on( 17, "VHOST_USER_GET_QUEUE_NUM",         EMPTY,    None,      MQ,      U64, |_| own(Own::GetQueueNum)),
    on( 18, "VHOST_USER_SET_VRING_ENABLE",      STATE,    None,      PF,      Ack, set_vring_enable),
    on( 19, "VHOST_USER_SEND_RARP",             NUMBER,   None,      RARP,    Ack, send_rarp),
    on( 20, "VHOST_USER_NET_SET_MTU",           NUMBER,   None,      NET_MTU, Ack, net_set_mtu),
    on( 21, "VHOST_USER_SET_BACKEND_REQ_FD",    EMPTY,    One,       BACKEND, Ack, set_backend_req_fd),
    on( 22, "VHOST_USER_IOTLB_MSG",             IOTLB,    None,      Open,    Ack, iotlb_msg),
    off(23, "VHOST_USER_SET_VRING_ENDIAN"),
    on( 24, "VHOST_USER_GET_CONFIG",            Config,   None,      CONFIG,  Answer::Config, get_config),
    on( 25, "VHOST_USER_SET_CONFIG",            Config,   None,      CONFIG,  Ack, set_config),
    off(26, "VHOST_USER_CREATE_CRYPTO_SESSION"),
    off(27, "VHOST_USER_CLOSE_CRYPTO_SESSION"),
    on( 28, "VHOST_USER_POSTCOPY_ADVISE",       EMPTY,    None,      PAGEFAULT, Fd,  |_| device(Request::PostcopyAdvise)),
    on( 29, "VHOST_USER_POSTCOPY_LISTEN",       EMPTY,    None,      PAGEFAULT, Ack, |_| device(Request::PostcopyListen)),
    on( 30, "VHOST_USER_POSTCOPY_END",          EMPTY,    None,      PAGEFAULT, U64, |_| device(Request::PostcopyEnd)),
    on( 31, "VHOST_USER_GET_INFLIGHT_FD",       Inflight, None,      INFLIGHT, Answer::Inflight, get_inflight_fd),
    on( 32, "VHOST_USER_SET_INFLIGHT_FD",       Inflight, One,       INFLIGHT, Ack, set_inflight_fd),
    off(33, "VHOST_USER_GPU_SET_SOCKET"),
    on( 34, "VHOST_USER_RESET_DEVICE",          EMPTY,    None,      RESET,   Ack, |_| device(Request::ResetDevice)),
    off(35, "VHOST_USER_VRING_KICK"),
    on( 36, "VHOST_USER_GET_MAX_MEM_SLOTS",     EMPTY,    None,      SLOTS,   U64, |_| own(Own::GetMaxMemSlots)),
    on( 37, "VHOST_USER_ADD_MEM_REG",           Region,   FdRule::Region, SLOTS, AckOrRegions, add_mem_reg),
    on( 38, "VHOST_USER_REM_MEM_REG",           Region,   Ignored,   SLOTS,   Ack, rem_mem_reg),
    on( 39, "VHOST_USER_SET_STATUS",            NUMBER,   None,      STATUS,  Ack, set_status),
    on( 40, "VHOST_USER_GET_STATUS",            EMPTY,    None,      STATUS,  U64, |_| device(Request::GetStatus)),
    off(41, "VHOST_USER_GET_SHARED_OBJECT"),
    on( 42, "VHOST_USER_SET_DEVICE_STATE_FD",   TRANSFER, One,       MOVES,   U64, set_device_state_fd),
    on( 43, "VHOST_USER_CHECK_DEVICE_STATE",    EMPTY,    None,      MOVES,   U64, |_| device(Request::CheckDeviceState)),
    off(44, "VHOST_USER_GET_SHMEM_CONFIG"),
    ]
};

#[cfg(test)]
mod tests {
    use super::super::message::MAX_PAYLOAD;
    use super::super::testing::{handled, sample, Probe};
    use super::*;

    #[test]
    fn every_row_stands_at_its_number_and_names_are_unique() {
        for (at, row) in TABLE.iter().enumerate() {
            assert_eq!(usize::try_from(row.id), Ok(at), "{}", row.name);
            assert!(row.name.starts_with("VHOST_USER_"), "{}", row.name);
            assert_eq!(
                TABLE.iter().filter(|other| other.name == row.name).count(),
                1,
                "{}",
                row.name
            );
        }
    }

    #[test]
    fn numbers_without_a_row_are_unknown() {
        for id in [45, 46, 0x8000_0001, u32::MAX] {
            assert!(row(id).is_none());
            assert_eq!(name(id), "unknown request");
        }
    }

    #[test]
    fn this_version_handles_these_requests_and_no_others() {
        let ids: Vec<u32> = handled().map(|(id, _, _)| id).collect();
        let expected: Vec<u32> = (0..=22)
            .chain(24..=25)
            .chain(28..=32)
            .chain([34])
            .chain(36..=40)
            .chain(42..=43)
            .collect();
        assert_eq!(ids, expected);
    }

    #[test]
    fn every_row_takes_its_sample() {
        let probe = Probe::new();
        for (id, name, rule) in handled() {
            let (payload, fds) = sample(id);
            assert!(rule.decode(&payload, probe.fds(fds), 4).is_ok(), "{}", name);
        }
        assert_eq!(probe.leaked(), 0);
    }

    #[test]
    fn every_row_refuses_a_payload_of_any_other_length() {
        let probe = Probe::new();
        for (id, name, rule) in handled() {
            let (good, fds) = sample(id);
            for length in (0..MAX_PAYLOAD).filter(|length| *length != good.len()) {
                let mut payload = good.clone();
                payload.resize(length, 0);
                if rule.payload.admits(&payload) {
                    continue; // the other length of an in-flight description
                }
                let result = rule.decode(&payload, probe.fds(fds), 4);
                let Err(Malformed::Payload { got, expected }) = result else {
                    panic!("{} of {length} bytes: {result:?}", name);
                };
                assert_eq!(got, length);
                assert_ne!(expected, length);
            }
        }
        assert_eq!(probe.leaked(), 0);
    }

    #[test]
    fn every_row_refuses_missing_and_extra_descriptors_and_closes_them() {
        let probe = Probe::new();
        for (id, name, rule) in handled() {
            let (payload, right) = sample(id);
            let tolerated = if name == "VHOST_USER_REM_MEM_REG" {
                1
            } else {
                right
            };
            for got in (0..=8).filter(|got| *got != right && *got != tolerated) {
                let result = rule.decode(&payload, probe.fds(got), 4);
                let expected = Malformed::Fds {
                    got,
                    min: right,
                    max: tolerated,
                };
                assert_eq!(result.map(|_| ()), Err(expected), "{}", name);
            }
        }
        assert_eq!(probe.leaked(), 0);
    }
}
