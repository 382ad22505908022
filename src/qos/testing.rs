//! What the tests of meters share: a bucket too simple to be wrong, and numbers that are the same in every run.

pub(super) const SECOND: u64 = 1_000_000_000;

/// A bucket that is filled by the tick, in fractions of a token.
pub(super) struct Naive {
    rate: u64,
    burst: u64,
    tokens: u64,
    /// Of a token, in `per`ths.
    fraction: u64,
}

impl Naive {
    pub(super) fn full(rate: u64, burst: u64) -> Naive {
        Naive {
            rate,
            burst,
            tokens: burst,
            fraction: 0,
        }
    }

    /// `ticks` go by, of which `per` bring the rate.
    pub(super) fn tick(&mut self, ticks: u64, per: u64) {
        for _ in 0..ticks * self.rate {
            self.fraction += 1;
            if self.fraction == per {
                self.fraction = 0;
                self.tokens += 1;
            }
            if self.tokens >= self.burst {
                (self.tokens, self.fraction) = (self.burst, 0);
            }
        }
    }

    pub(super) fn take(&mut self, tokens: u64) -> bool {
        let there = tokens <= self.tokens;
        if there {
            self.tokens -= tokens;
        }
        there
    }
}

/// Numbers in an order that nobody would guess, by xorshift.
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(super) fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }

    pub(super) fn of<T: Copy, const N: usize>(&mut self, choices: [T; N]) -> T {
        let index = self.below(N as u64);
        choices[usize::try_from(index).unwrap_or(0)]
    }
}
