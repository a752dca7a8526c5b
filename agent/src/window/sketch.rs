//! A mergeable quantile sketch with a relative error of 1 %.
//!
//! DDSketch (Masson, Rim, Lee: "DDSketch: A fast and fully-mergeable quantile sketch with relative-error guarantees",
//! PVLDB 12(12), 2019). A value x > 0 falls into bin ⌈log_γ x⌉ with γ = (1 + α) / (1 − α); the middle of a bin lies within
//! α of every value in it. Negative values have bins of their own, by magnitude; zero has one.
//!
//! Bins are kept as a sorted list of those that are not empty: a minute of a sensor at one value a second fills a few, so
//! a list takes tens of bytes where an array over the range would take kilobytes. Past [`MAX_BINS`] the two of smallest
//! magnitude become one, as in the paper: the error bound then no longer holds for the values next to zero.

use serde::{Deserialize, Serialize};

/// The relative error α.
pub const RELATIVE_ERROR: f64 = 0.01;
/// Bins kept per sign; enough for magnitudes that differ by a factor of 10^17 without any loss.
pub const MAX_BINS: usize = 2_048;

/// γ: the ratio of a bin's upper edge to its lower one.
const GAMMA: f64 = (1.0 + RELATIVE_ERROR) / (1.0 - RELATIVE_ERROR);
/// 1 / ln γ.
const INVERSE_LN_GAMMA: f64 = 49.998_333_288_886_78;

/// How often values of about the same size occurred, for every size.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sketch {
    positive: Bins,
    negative: Bins,
    zeros: u64,
}

impl Sketch {
    /// Counts one finite value.
    pub fn add(&mut self, value: f64) {
        if value >= f64::MIN_POSITIVE {
            self.positive.add(bin_of(value), 1);
        } else if value <= -f64::MIN_POSITIVE {
            self.negative.add(bin_of(-value), 1);
        } else {
            self.zeros += 1;
        }
    }

    /// Counts all that `other` counted.
    pub fn merge(&mut self, other: &Self) {
        self.positive.merge(&other.positive);
        self.negative.merge(&other.negative);
        self.zeros += other.zeros;
    }

    /// How many values were counted.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.negative.count() + self.zeros + self.positive.count()
    }

    /// The value of the given rank (between 0 and 1) to within [`RELATIVE_ERROR`], or `None` if nothing was counted.
    ///
    /// Of n values in order it stands for the one at index ⌊rank · (n − 1)⌋.
    #[must_use]
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a rank is below the count, and not negative"
    )]
    pub fn quantile(&self, rank: f64) -> Option<f64> {
        let last = self.count().checked_sub(1)?;
        let mut index = ((rank.clamp(0.0, 1.0) * last as f64) as u64).min(last);
        for bin in self.negative.0.iter().rev() {
            match index.checked_sub(bin.count.into()) {
                Some(rest) => index = rest,
                None => return Some(-middle_of(bin.key)),
            }
        }
        match index.checked_sub(self.zeros) {
            Some(rest) => index = rest,
            None => return Some(0.0),
        }
        for bin in &self.positive.0 {
            match index.checked_sub(bin.count.into()) {
                Some(rest) => index = rest,
                None => return Some(middle_of(bin.key)),
            }
        }
        None
    }

    /// Roughly the bytes it takes in memory.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        size_of::<Self>() + (self.positive.0.capacity() + self.negative.0.capacity()) * size_of::<Bin>()
    }
}

/// The bin of a normal number above zero.
#[expect(clippy::cast_possible_truncation, reason = "the logarithm of a float, times 50, is below 40 000")]
fn bin_of(magnitude: f64) -> i32 {
    (magnitude.ln() * INVERSE_LN_GAMMA).ceil() as i32
}

/// The value that is within α of both edges of a bin; infinite for the very last bins.
fn middle_of(key: i32) -> f64 {
    (f64::from(key) / INVERSE_LN_GAMMA).exp() * 2.0 / (GAMMA + 1.0)
}

/// Bins that are not empty, in the order of their keys.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Bins(Vec<Bin>);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Bin {
    key: i32,
    /// Saturates: 2^32 values of one size in one window are beyond what any gateway takes in.
    count: u32,
}

impl Bins {
    fn add(&mut self, key: i32, count: u32) {
        // Sensors repeat themselves: a short list is scanned faster from the end than it is bisected.
        let found = if self.0.len() <= 8 {
            match self.0.iter().rposition(|bin| bin.key <= key) {
                Some(index) if self.0[index].key == key => Ok(index),
                Some(index) => Err(index + 1),
                None => Err(0),
            }
        } else {
            self.0.binary_search_by_key(&key, |bin| bin.key)
        };
        match found {
            Ok(index) => self.0[index].count = self.0[index].count.saturating_add(count),
            Err(index) => {
                self.0.insert(index, Bin { key, count });
                self.collapse();
            }
        }
    }

    fn merge(&mut self, other: &Self) {
        for bin in &other.0 {
            self.add(bin.key, bin.count);
        }
    }

    fn collapse(&mut self) {
        if self.0.len() > MAX_BINS {
            let smallest = self.0.remove(0);
            self.0[0].count = self.0[0].count.saturating_add(smallest.count);
        }
    }

    fn count(&self) -> u64 {
        self.0.iter().map(|bin| u64::from(bin.count)).sum()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sketch_of(values: &[f64]) -> Sketch {
        let mut sketch = Sketch::default();
        values.iter().for_each(|value| sketch.add(*value));
        sketch
    }

    #[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    fn exact(values: &[f64], rank: f64) -> f64 {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        sorted[(rank * (sorted.len() - 1) as f64) as usize]
    }

    /// Magnitudes over 16 decades, both signs, and zero.
    fn values() -> impl Strategy<Value = Vec<f64>> {
        let one = prop_oneof![
            8 => (-18.0..18.0_f64).prop_map(f64::exp),
            4 => (-18.0..18.0_f64).prop_map(|power| -power.exp()),
            1 => Just(0.0),
            1 => Just(21.5),
        ];
        proptest::collection::vec(one, 1..400)
    }

    proptest! {
        #[test]
        fn a_quantile_is_within_one_percent(values in values(), rank in 0.0..=1.0_f64) {
            let estimate = sketch_of(&values).quantile(rank).unwrap();
            let exact = exact(&values, rank);
            prop_assert!((estimate - exact).abs() <= exact.abs() * (RELATIVE_ERROR + 1e-9), "{estimate} for {exact}");
        }

        #[test]
        fn merging_equals_adding(left in values(), right in values()) {
            let mut merged = sketch_of(&left);
            merged.merge(&sketch_of(&right));
            let all: Vec<f64> = left.iter().chain(&right).copied().collect();
            prop_assert_eq!(merged, sketch_of(&all));
        }

        #[test]
        fn a_sketch_survives_its_serialisation(values in values()) {
            let sketch = sketch_of(&values);
            let bytes = postcard::to_stdvec(&sketch).unwrap();
            prop_assert_eq!(postcard::from_bytes::<Sketch>(&bytes).unwrap(), sketch);
        }
    }

    #[test]
    fn the_constants_agree() {
        assert!((GAMMA.ln().recip() - INVERSE_LN_GAMMA).abs() < 1e-9);
    }

    #[test]
    fn nothing_counted_has_no_quantile() {
        assert_eq!(Sketch::default().quantile(0.5), None);
    }

    #[test]
    fn bins_are_bounded_and_the_large_values_stay_exact() {
        let mut sketch = Sketch::default();
        for step in -30_000..30_000_i32 {
            sketch.add((f64::from(step) / 45.0).exp());
        }
        assert_eq!(sketch.positive.0.len(), MAX_BINS);
        assert_eq!(sketch.count(), 60_000);
        let exact = (29_400.0 / 45.0_f64).exp();
        let estimate = sketch.quantile(0.99).unwrap();
        assert!((estimate / exact - 1.0).abs() < 0.04, "{estimate} for {exact}");
    }

    #[test]
    fn the_ends_of_the_floats_are_taken() {
        let sketch = sketch_of(&[f64::MIN, f64::MAX, f64::MIN_POSITIVE, -f64::MIN_POSITIVE, 1e-320, -0.0]);
        assert_eq!(sketch.count(), 6);
        assert_eq!(sketch.zeros, 2);
    }
}
