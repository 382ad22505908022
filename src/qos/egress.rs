//! What a guest is sent, by a row of the table `QoS`: of type `egress-policer`, one rate, or `trtcm-policer`, two rates and
//! queues. Both drop what is beyond; neither delays.

use std::ffi::CStr;

use super::bucket::Bucket;
use super::meter::Rates;
use super::metered;
use super::trtcm::{QueueCounts, Trtcm};

const EGRESS_POLICER: &CStr = c"egress-policer";
const TRTCM_POLICER: &CStr = c"trtcm-policer";

/// The types there are, terminated as Open vSwitch wants to keep them.
pub const TYPES: [&CStr; 2] = [EGRESS_POLICER, TRTCM_POLICER];

/// `other_config` of a row of `QoS` or `Queue`. What it does not know is left to whoever set it.
pub type Details<'a> = [(&'a str, &'a str)];

/// What is in force, in the words of `other_config`.
pub type Settings = Vec<(&'static str, u64)>;

/// Why a setting is not taken; what was in force before stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// A rate without a burst, or no rate where there has to be one.
    #[error("Invalid argument")]
    Invalid,
    /// No such type, or no queues in a type.
    #[error("Operation not supported")]
    Unsupported,
}

impl Refusal {
    /// The positive errno that Open vSwitch shows for it.
    pub fn errno(self) -> i32 {
        match self {
            Refusal::Invalid => libc::EINVAL,
            Refusal::Unsupported => libc::EOPNOTSUPP,
        }
    }
}

/// The QoS of a port.
#[derive(Debug)]
pub struct Egress(Policer);

#[derive(Debug)]
enum Policer {
    /// Of RFC 2697, without an excess burst.
    OneRate(Bucket),
    TwoRate(Box<Trtcm>),
}

impl Egress {
    /// QoS of type `name`, as `details` want it.
    pub fn new(name: &str, details: &Details<'_>, now: u64) -> Result<Egress, Refusal> {
        let is = |kind: &CStr| kind.to_bytes() == name.as_bytes();
        if is(EGRESS_POLICER) {
            let Rates { cir, cbs, .. } = one_rate(details)?;
            Ok(Egress(Policer::OneRate(Bucket::full(cir, cbs, now))))
        } else if is(TRTCM_POLICER) {
            Ok(Egress(Policer::TwoRate(Box::new(Trtcm::new(
                two_rates(details)?,
                now,
            )))))
        } else {
            Err(Refusal::Unsupported)
        }
    }

    /// The type's name.
    pub fn name(&self) -> &'static CStr {
        match self.0 {
            Policer::OneRate(_) => EGRESS_POLICER,
            Policer::TwoRate(_) => TRTCM_POLICER,
        }
    }

    /// What is in force.
    pub fn settings(&self) -> Settings {
        match &self.0 {
            Policer::OneRate(bucket) => vec![("cir", bucket.rate()), ("cbs", bucket.burst())],
            Policer::TwoRate(policer) => words(policer.rates()),
        }
    }

    /// Takes other details for the same type. What they do not change keeps its tokens, and all queues stay.
    pub fn set(&mut self, details: &Details<'_>, now: u64) -> Result<(), Refusal> {
        match &mut self.0 {
            Policer::OneRate(bucket) => {
                let Rates { cir, cbs, .. } = one_rate(details)?;
                if (bucket.rate(), bucket.burst()) != (cir, cbs) {
                    *bucket = Bucket::full(cir, cbs, now);
                }
            }
            Policer::TwoRate(policer) => policer.set(two_rates(details)?, now),
        }
        Ok(())
    }

    /// Whether a packet of `len` bytes passes; it is of the queue that `queue` names, if that matters.
    #[inline]
    pub fn admit(&mut self, now: u64, len: u32, queue: impl FnOnce() -> u32) -> bool {
        match &mut self.0 {
            Policer::OneRate(bucket) => bucket.take(now, metered(len)),
            Policer::TwoRate(policer) => policer.admit(now, metered(len), queue()),
        }
    }

    /// The numbers of the queues.
    pub fn queues(&self) -> Result<Vec<u32>, Refusal> {
        Ok(self.with_queues()?.queue_ids().collect())
    }

    /// What is in force for a queue, and what it counted.
    pub fn queue(&self, id: u32) -> Result<(Settings, QueueCounts), Refusal> {
        let (rates, counts) = self.with_queues()?.queue(id).ok_or(Refusal::Invalid)?;
        Ok((words(rates), counts))
    }

    /// Makes a queue, or changes it. Queue 0 without details has the port's.
    pub fn set_queue(&mut self, id: u32, details: &Details<'_>, now: u64) -> Result<(), Refusal> {
        let policer = self.with_queues_mut()?;
        let rates = match (id, details) {
            (0, []) => policer.rates(),
            (_, details) => two_rates(details)?,
        };
        policer.set_queue(id, rates, now);
        Ok(())
    }

    /// Takes a queue away; that there is none is no error. Queue 0 goes back to the port's rates instead.
    pub fn delete_queue(&mut self, id: u32, now: u64) -> Result<(), Refusal> {
        self.with_queues_mut()?.delete_queue(id, now);
        Ok(())
    }

    fn with_queues(&self) -> Result<&Trtcm, Refusal> {
        match &self.0 {
            Policer::TwoRate(policer) => Ok(policer),
            Policer::OneRate(_) => Err(Refusal::Unsupported),
        }
    }

    fn with_queues_mut(&mut self) -> Result<&mut Trtcm, Refusal> {
        match &mut self.0 {
            Policer::TwoRate(policer) => Ok(policer),
            Policer::OneRate(_) => Err(Refusal::Unsupported),
        }
    }
}

fn one_rate(details: &Details<'_>) -> Result<Rates, Refusal> {
    let rates = read(details);
    valid(rates, rates.cir > 0 && rates.cbs > 0)
}

/// A rate needs a burst; a burst needs no rate.
fn two_rates(details: &Details<'_>) -> Result<Rates, Refusal> {
    let rates = read(details);
    let pairs = [(rates.cir, rates.cbs), (rates.eir, rates.ebs)];
    valid(rates, pairs.iter().all(|(rate, burst)| *rate == 0 || *burst > 0))
}

fn valid(rates: Rates, valid: bool) -> Result<Rates, Refusal> {
    valid.then_some(rates).ok_or(Refusal::Invalid)
}

/// What is no number counts as 0, as on stock ports.
fn read(details: &Details<'_>) -> Rates {
    let number = |key| {
        let value = details.iter().find(|(k, _)| *k == key).map(|(_, v)| v.parse());
        value.and_then(Result::ok).unwrap_or(0)
    };
    Rates {
        cir: number("cir"),
        cbs: number("cbs"),
        eir: number("eir"),
        ebs: number("ebs"),
    }
}

fn words(rates: Rates) -> Settings {
    let Rates { cir, cbs, eir, ebs } = rates;
    vec![("cir", cir), ("cbs", cbs), ("eir", eir), ("ebs", ebs)]
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICER: &str = "egress-policer";
    const TRTCM: &str = "trtcm-policer";

    fn new(name: &str, details: &Details<'_>) -> Result<Egress, Refusal> {
        Egress::new(name, details, 0)
    }

    fn none() -> u32 {
        unreachable!("one rate has no queues")
    }

    #[test]
    fn an_egress_policer_needs_a_rate_and_a_burst() {
        for details in [
            &[][..],
            &[("cir", "1")],
            &[("cbs", "1")],
            &[("cir", "0"), ("cbs", "1")],
            &[("cir", "many"), ("cbs", "1")],
            &[("cir", "18446744073709551616"), ("cbs", "1")],
        ] {
            assert_eq!(new(POLICER, details).err(), Some(Refusal::Invalid), "{details:?}");
        }
        let policer = new(POLICER, &[("cir", "5"), ("cbs", "18446744073709551615")]).expect("both");
        assert_eq!(policer.settings(), [("cir", 5), ("cbs", u64::MAX)]);
        assert_eq!(policer.name(), TYPES[0]);
    }

    #[test]
    fn a_trtcm_policer_needs_a_burst_for_each_rate() {
        for details in [
            &[("cir", "1")][..],
            &[("eir", "1")],
            &[("cir", "1"), ("cbs", "1"), ("eir", "1")],
        ] {
            assert_eq!(new(TRTCM, details).err(), Some(Refusal::Invalid), "{details:?}");
        }
        for details in [&[][..], &[("cbs", "1")], &[("eir", "1"), ("ebs", "1")]] {
            assert!(new(TRTCM, details).is_ok(), "{details:?}");
        }
    }

    #[test]
    fn other_types_are_not_supported() {
        for name in ["linux-htb", "", "egress-police", "EGRESS-POLICER"] {
            let details = [("cir", "1"), ("cbs", "1")];
            assert_eq!(new(name, &details).err(), Some(Refusal::Unsupported));
        }
    }

    #[test]
    fn a_refused_change_changes_nothing() {
        let mut policer = new(POLICER, &[("cir", "5"), ("cbs", "6")]).expect("both");
        assert_eq!(policer.set(&[("cir", "5")], 0), Err(Refusal::Invalid));
        assert_eq!(policer.settings(), [("cir", 5), ("cbs", 6)]);
        let mut policer = new(TRTCM, &[("cir", "5"), ("cbs", "6")]).expect("both");
        policer
            .set_queue(1, &[("eir", "7"), ("ebs", "8")], 0)
            .expect("both");
        assert_eq!(policer.set_queue(1, &[("eir", "7")], 0), Err(Refusal::Invalid));
        assert_eq!(policer.set_queue(2, &[("eir", "7")], 0), Err(Refusal::Invalid));
        assert_eq!(policer.queues(), Ok(vec![0, 1]));
        let (details, _) = policer.queue(1).expect("queue 1");
        assert_eq!(details, [("cir", 0), ("cbs", 0), ("eir", 7), ("ebs", 8)]);
    }

    #[test]
    fn the_same_details_again_keep_the_tokens() {
        let details = [("cir", "1"), ("cbs", "50")];
        let mut policer = new(POLICER, &details).expect("both");
        assert!(policer.admit(0, 64, none));
        policer.set(&details, 0).expect("the same");
        assert!(!policer.admit(0, 64, none));
        policer.set(&[("cir", "2"), ("cbs", "50")], 0).expect("another");
        assert!(policer.admit(0, 64, none), "new rates begin with a full bucket");
    }

    #[test]
    fn one_rate_has_no_queues() {
        let mut policer = new(POLICER, &[("cir", "5"), ("cbs", "6")]).expect("both");
        assert_eq!(policer.queues(), Err(Refusal::Unsupported));
        assert_eq!(policer.queue(0).err(), Some(Refusal::Unsupported));
        assert_eq!(policer.set_queue(0, &[], 0), Err(Refusal::Unsupported));
        assert_eq!(policer.delete_queue(0, 0), Err(Refusal::Unsupported));
    }

    #[test]
    fn queue_0_without_details_has_the_ports_and_other_queues_none() {
        let mut policer = new(TRTCM, &[("cir", "5"), ("cbs", "60")]).expect("both");
        policer.set_queue(0, &[("cbs", "1")], 0).expect("a burst");
        policer.set(&[("cir", "7"), ("cbs", "80")], 0).expect("both");
        policer.set_queue(0, &[], 0).expect("nothing");
        policer.set_queue(3, &[], 0).expect("nothing");
        assert_eq!(policer.queue(0).expect("0").0, policer.settings());
        assert!(!policer.admit(0, 15, || 3), "no rates, no packets");
        assert!(policer.admit(0, 15, || 0));
        assert_eq!(policer.queue(4).err(), Some(Refusal::Invalid));
        assert_eq!(policer.delete_queue(4, 0), Ok(()));
    }
}
