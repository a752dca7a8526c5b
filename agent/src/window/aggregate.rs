//! What is remembered of a window's values, and the results computed from it.
//!
//! A [`Tally`] takes one value after the other and keeps a fixed amount, plus a sketch if a quantile is asked for. Sums
//! are compensated (Neumaier), the variance is Welford's. The same values in the same order always give the same bits,
//! which is what makes a replay after a crash equal the run before it.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::settings::Aggregate;
use super::sketch::Sketch;
use crate::reading::{AggregateValue, Timestamp};

/// What a window computes, ready to be used.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    /// Each aggregate with the name it has on the wire; `count` first.
    aggregates: Vec<(Arc<str>, Aggregate)>,
    has_quantile: bool,
}

impl Plan {
    /// The plan for the configured aggregates; `count` is put first if it is not.
    pub(crate) fn new(configured: &[Aggregate]) -> Self {
        let rest = configured.iter().filter(|aggregate| **aggregate != Aggregate::Count);
        let aggregates: Vec<(Arc<str>, Aggregate)> = std::iter::once(&Aggregate::Count)
            .chain(rest)
            .map(|aggregate| (aggregate.name().into(), aggregate.clone()))
            .collect();
        let has_quantile =
            aggregates.iter().any(|(_, aggregate)| matches!(aggregate, Aggregate::Quantile { .. }));
        Self { aggregates, has_quantile }
    }

    /// The names of the aggregates, in order.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.aggregates.iter().map(|(name, _)| &**name)
    }

    /// A tally of nothing.
    pub(crate) fn tally(&self) -> Tally {
        Tally {
            count: 0,
            sum: 0.0,
            compensation: 0.0,
            mean: 0.0,
            squares: 0.0,
            min: f64::INFINITY,
            max: f64::NEG_INFINITY,
            first: (i64::MAX, 0.0),
            last: (i64::MIN, 0.0),
            sketch: self.has_quantile.then(Box::default),
        }
    }
}

/// What is remembered of the values of one window of one series.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Tally {
    count: u64,
    sum: f64,
    /// What rounding took from `sum` (Neumaier).
    compensation: f64,
    /// Welford's running mean.
    mean: f64,
    /// Welford's sum of squared distances from the mean.
    squares: f64,
    min: f64,
    max: f64,
    /// The earliest value with its time.
    first: (i64, f64),
    /// The latest value with its time.
    last: (i64, f64),
    sketch: Option<Box<Sketch>>,
}

impl Tally {
    /// Takes one finite value; values come in the order of their sequence.
    pub(crate) fn add(&mut self, at: Timestamp, value: f64) {
        self.count += 1;
        let sum = self.sum + value;
        self.compensation +=
            if self.sum.abs() >= value.abs() { (self.sum - sum) + value } else { (value - sum) + self.sum };
        self.sum = sum;
        let distance = value - self.mean;
        self.mean += distance / as_float(self.count);
        self.squares += distance * (value - self.mean);
        self.min = self.min.min(value);
        self.max = self.max.max(value);
        if at.0 < self.first.0 {
            self.first = (at.0, value);
        }
        if at.0 >= self.last.0 {
            self.last = (at.0, value);
        }
        if let Some(sketch) = &mut self.sketch {
            sketch.add(value);
        }
    }

    /// The results, in the order of the plan. What does not exist (a deviation of one value) or is not finite (a sum beyond
    /// the floats) is absent.
    pub(crate) fn results(&self, plan: &Plan) -> Vec<(Arc<str>, AggregateValue)> {
        let mut results = Vec::with_capacity(plan.aggregates.len());
        for (name, aggregate) in &plan.aggregates {
            if let Some(value) = self.result(aggregate) {
                results.push((Arc::clone(name), value));
            }
        }
        results
    }

    fn result(&self, aggregate: &Aggregate) -> Option<AggregateValue> {
        let number = match aggregate {
            Aggregate::Count => return Some(AggregateValue::Count(self.count)),
            Aggregate::Sum => self.sum(),
            Aggregate::Mean => self.mean(),
            Aggregate::Min => self.min,
            Aggregate::Max => self.max,
            Aggregate::First => self.first.1,
            Aggregate::Last => self.last.1,
            Aggregate::Stddev if self.count < 2 => return None,
            Aggregate::Stddev => (self.squares / as_float(self.count - 1)).sqrt(),
            Aggregate::Quantile { rank, .. } => {
                self.sketch.as_ref()?.quantile(*rank)?.max(self.min).min(self.max)
            }
        };
        number.is_finite().then_some(AggregateValue::Number(number))
    }

    fn sum(&self) -> f64 {
        self.sum + self.compensation
    }

    /// By the sum, which is the more exact; by the running mean where the sum has left the floats.
    fn mean(&self) -> f64 {
        let by_sum = self.sum() / as_float(self.count);
        let mean = if by_sum.is_finite() { by_sum } else { self.mean };
        // Rounding must not put a mean outside the values: of three times 0.1 it is 0.1. A NaN passes through.
        if mean.is_nan() { mean } else { mean.max(self.min).min(self.max) }
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts stay far below 2^53")]
fn as_float(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMES: [&str; 10] = ["count", "sum", "mean", "min", "max", "first", "last", "stddev", "p0", "p95"];

    fn results(values: &[(i64, f64)], names: &[&str]) -> Vec<(String, AggregateValue)> {
        let aggregates: Vec<_> = names.iter().map(|name| Aggregate::from_name(name).unwrap()).collect();
        let plan = Plan::new(&aggregates);
        let mut tally = plan.tally();
        values.iter().for_each(|(at, value)| tally.add(Timestamp(*at), *value));
        tally.results(&plan).into_iter().map(|(name, value)| (name.to_string(), value)).collect()
    }

    fn check(values: &[(i64, f64)], name: &str, expected: Option<f64>) {
        let found = results(values, &NAMES).into_iter().find(|(found, _)| found == name);
        match (found, expected) {
            (Some((_, AggregateValue::Number(number))), Some(expected)) => {
                assert!(
                    (number - expected).abs() <= 1e-12 * expected.abs(),
                    "{name}: {number} is not {expected}"
                );
            }
            (None, None) => {}
            (found, expected) => panic!("{name}: {found:?} is not {expected:?}"),
        }
    }

    #[test]
    fn aggregates_of_a_few_values() {
        let values = [(3, 2.0), (1, 4.0), (2, 9.0), (1, 5.0)];
        check(&values, "sum", Some(20.0));
        check(&values, "mean", Some(5.0));
        check(&values, "min", Some(2.0));
        check(&values, "max", Some(9.0));
        check(&values, "first", Some(4.0));
        check(&values, "last", Some(2.0));
        check(&values, "stddev", Some((26.0_f64 / 3.0).sqrt()));
    }

    #[test]
    fn the_last_of_one_time_is_the_one_that_came_last() {
        check(&[(1, 4.0), (1, 5.0)], "first", Some(4.0));
        check(&[(1, 4.0), (1, 5.0)], "last", Some(5.0));
    }

    #[test]
    fn one_value_has_no_deviation() {
        check(&[(1, 4.0)], "stddev", None);
        check(&[(1, 4.0)], "p95", Some(4.0));
    }

    #[test]
    fn count_comes_first_even_if_it_was_not_asked_for() {
        let results = results(&[(1, 4.0)], &["max", "count", "min"]);
        let names: Vec<_> = results.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["count", "max", "min"]);
        assert_eq!(results[0].1, AggregateValue::Count(1));
    }

    #[test]
    fn small_values_beside_large_ones_are_not_lost() {
        check(&[(1, 1.0), (2, 1e100), (3, 1.0), (4, -1e100)], "sum", Some(2.0));
    }

    #[test]
    fn what_leaves_the_floats_is_absent() {
        let huge = [(1, f64::MAX), (2, f64::MAX), (3, -f64::MAX)];
        check(&huge, "sum", None);
        check(&huge, "stddev", None);
        check(&huge, "min", Some(-f64::MAX));
        for (name, value) in results(&huge, &NAMES) {
            assert!(!matches!(value, AggregateValue::Number(number) if !number.is_finite()), "{name}");
        }
    }

    #[test]
    fn a_mean_stays_among_the_values() {
        check(&[(1, 0.1), (2, 0.1), (3, 0.1)], "mean", Some(0.1));
    }
}
