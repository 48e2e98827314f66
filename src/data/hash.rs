//! The one hash behind the order of examples and the held-out split: SplitMix64's finaliser, chained over words.
//!
//! It is written out here, not taken from a library, because runs are compared across versions and machines: the
//! same seed must give the same order for ever.

/// SplitMix64's step from one word: a bijection whose every output bit depends on every input bit.
pub(crate) const fn splitmix64(word: u64) -> u64 {
    let mut z = word.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// The hash `state` extended by one more word; order matters.
pub(crate) const fn extend(state: u64, word: u64) -> u64 {
    splitmix64(state ^ splitmix64(word))
}

/// Random numbers, one after another, each the hash of a state and how many there were.
pub(super) struct Draws {
    state: u64,
    count: u64,
}

impl Draws {
    pub(super) const fn new(state: u64) -> Self {
        Self { state, count: 0 }
    }

    /// A whole number below `bound`, each as likely as the others but for one part in 2⁶⁴⁄bound.
    pub(super) fn below(&mut self, bound: usize) -> usize {
        let number = extend(self.state, self.count);
        self.count += 1;
        ((u128::from(number) * bound as u128) >> 64) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_splitmix64() {
        // The reference generator's first outputs from the state 0.
        assert_eq!(splitmix64(0), 0xE220_A839_7B1D_CDAF);
        assert_eq!(splitmix64(0x9E37_79B9_7F4A_7C15), 0x6E78_9E6A_A1B9_65F4);
    }

    #[test]
    fn draws_are_even_and_repeat() {
        let drawn = |state| {
            let mut draws = Draws::new(state);
            (0..6000).map(|_| draws.below(6)).collect::<Vec<_>>()
        };
        for side in 0..6 {
            let times = drawn(1).iter().filter(|&&number| number == side).count();
            assert!((850..1150).contains(&times), "{side}: {times}");
        }
        assert_eq!(drawn(1), drawn(1));
        assert_ne!(drawn(1), drawn(2));
    }

    #[test]
    fn order_matters() {
        assert_ne!(extend(extend(0, 1), 2), extend(extend(0, 2), 1));
    }
}
