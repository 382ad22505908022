//! The words behind `vhost-user/pcap start PORT` and `vhost-user/trace start PORT`. Pure.
//!
//! Every limit has a default, so that what is started and forgotten ends by itself.

use std::ops::RangeInclusive;

use crate::datapath::Direction;

/// Which bursts are looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Filter {
    /// Both if there is none.
    pub(super) direction: Option<Direction>,
    /// Number of a queue pair; all if there is none.
    pub(super) queue: Option<u16>,
}

impl Filter {
    pub(super) fn wants(&self, direction: Direction, queue: u16) -> bool {
        self.direction.is_none_or(|wanted| wanted == direction)
            && self.queue.is_none_or(|wanted| wanted == queue)
    }
}

/// What is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Wish {
    pub(super) filter: Filter,
    /// Where it is to go, if that was said.
    pub(super) file: Option<String>,
    numbers: Vec<(&'static str, u64)>,
}

/// An option with a number: its name, what it may be, and what it is if nobody says.
pub(super) struct Number(
    pub(super) &'static str,
    pub(super) RangeInclusive<u64>,
    pub(super) u64,
);

/// Queue pairs that there can be.
const QUEUES: RangeInclusive<u64> = 0..=127;

impl Wish {
    /// Reads `words`: options out of `numbers`, `direction`, `queue`, and one file name if `takes_file`.
    ///
    /// # Errors
    ///
    /// Which word is wrong, and what it may be.
    pub(super) fn parse(
        words: &[&str],
        numbers: &'static [Number],
        takes_file: bool,
    ) -> Result<Wish, String> {
        let mut wish = Wish {
            filter: Filter::default(),
            file: None,
            numbers: numbers
                .iter()
                .map(|Number(name, _, usual)| (*name, *usual))
                .collect(),
        };
        for word in words {
            match word.split_once('=').filter(|_| !word.starts_with('/')) {
                Some(("direction", value)) => wish.filter.direction = direction(value)?,
                Some((name, value)) => wish.set(name, value, numbers)?,
                None if takes_file && wish.file.is_none() => wish.file = Some((*word).to_owned()),
                None => return Err(format!("what is '{word}'?")),
            }
        }
        Ok(wish)
    }

    fn set(&mut self, name: &str, value: &str, numbers: &[Number]) -> Result<(), String> {
        if name == "queue" {
            let queue = number(name, value, &QUEUES)?;
            self.filter.queue = u16::try_from(queue).ok();
            return Ok(());
        }
        let known = numbers
            .iter()
            .zip(&mut self.numbers)
            .find(|(row, _)| row.0 == name);
        let Some((Number(_, range, _), (_, place))) = known else {
            let names: Vec<&str> = numbers.iter().map(|row| row.0).collect();
            let names = names.join(", ");
            return Err(format!(
                "there is no option {name}, only {names}, direction, queue"
            ));
        };
        *place = number(name, value, range)?;
        Ok(())
    }

    /// The number of an option, which is one of those that the words were read with.
    pub(super) fn number(&self, name: &str) -> u64 {
        let found = self.numbers.iter().find(|(known, _)| *known == name);
        found.map_or(0, |(_, number)| *number)
    }
}

fn number(name: &str, value: &str, range: &RangeInclusive<u64>) -> Result<u64, String> {
    let parsed = value.parse().ok().filter(|number| range.contains(number));
    parsed.ok_or_else(|| {
        format!(
            "{name}={value}: not a number from {} to {}",
            range.start(),
            range.end()
        )
    })
}

fn direction(value: &str) -> Result<Option<Direction>, String> {
    match value {
        "in" => Ok(Some(Direction::Dequeue)),
        "out" => Ok(Some(Direction::Enqueue)),
        "both" => Ok(None),
        _ => Err(format!(
            "direction={value}: not in (from the guest), out (to it) or both"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NUMBERS: &[Number] = &[Number("packets", 1..=100, 10), Number("seconds", 1..=60, 7)];

    fn parse(words: &[&str]) -> Result<Wish, String> {
        Wish::parse(words, NUMBERS, true)
    }

    #[test]
    fn what_nobody_says_has_a_default() {
        let wish = parse(&[]).unwrap();
        assert_eq!((wish.number("packets"), wish.number("seconds")), (10, 7));
        assert_eq!((wish.filter, wish.file), (Filter::default(), None));
    }

    #[test]
    fn words_come_in_any_order_and_a_path_may_have_an_equals_sign() {
        let wish = parse(&["queue=2", "/tmp/a=b", "direction=in", "packets=100"]).unwrap();
        assert_eq!(wish.file.as_deref(), Some("/tmp/a=b"));
        assert_eq!((wish.number("packets"), wish.number("seconds")), (100, 7));
        assert!(wish.filter.wants(Direction::Dequeue, 2));
        assert!(!wish.filter.wants(Direction::Enqueue, 2));
        assert!(!wish.filter.wants(Direction::Dequeue, 1));
    }

    #[test]
    fn a_word_that_is_wrong_is_named_with_what_it_may_be() {
        let rows = [
            (&["packets=0"][..], "packets=0: not a number from 1 to 100"),
            (&["packets=ten"], "packets=ten: not a number from 1 to 100"),
            (&["queue=128"], "queue=128: not a number from 0 to 127"),
            (
                &["direction=up"],
                "direction=up: not in (from the guest), out (to it) or both",
            ),
            (
                &["colour=red"],
                "there is no option colour, only packets, seconds, direction, queue",
            ),
            (&["one", "two"], "what is 'two'?"),
        ];
        for (words, complaint) in rows {
            assert_eq!(parse(words), Err(complaint.to_owned()));
        }
        assert!(Wish::parse(&["one"], NUMBERS, false).is_err());
    }
}
