//! What an operator says about a window.

use std::time::Duration;

/// Settings of one window: checked values.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// The configured name.
    pub name: String,
    /// The span of event time; whole milliseconds, at least 100 ms.
    pub size: Duration,
    /// The distance between two starts; divides nothing in particular, at most `size`.
    pub slide: Duration,
    /// How far out of order a device's readings may come.
    pub lateness: Duration,
    /// For how long (event time) after closing a late reading emits the window anew.
    pub allowed_lateness: Duration,
    /// A device silent for this long has its open windows emitted provisionally; default: `lateness`.
    pub idle: Duration,
    /// More series than this are not aggregated.
    pub max_series: usize,
    /// What to compute; `count` always first.
    pub aggregates: Vec<Aggregate>,
    /// Only readings of these sources; `None`: all.
    pub sources: Option<Vec<String>>,
    /// Only these fields; `None`: all that are numeric.
    pub fields: Option<Vec<String>>,
}

impl Settings {
    /// `lateness` where the operator does not say.
    pub const DEFAULT_LATENESS: Duration = Duration::from_secs(10);
    /// `max_series` where the operator does not say.
    pub const DEFAULT_MAX_SERIES: usize = 10_000;
    /// `idle` where it comes to zero, as by default without lateness: at once would be a result for every reading.
    pub const LEAST_IDLE: Duration = Duration::from_secs(1);

    /// `idle` as it is in force.
    #[must_use]
    pub fn idle_in_force(&self) -> Duration {
        if self.idle.is_zero() { Self::LEAST_IDLE } else { self.idle }
    }
}

/// One thing to compute over the values of a window.
#[derive(Clone, Debug, PartialEq)]
pub enum Aggregate {
    /// How many values.
    Count,
    /// Their sum.
    Sum,
    /// Their arithmetic mean.
    Mean,
    /// The smallest.
    Min,
    /// The largest.
    Max,
    /// The earliest by event time, ties by sequence.
    First,
    /// The latest by event time, ties by sequence.
    Last,
    /// Sample standard deviation (n − 1); absent below two values.
    Stddev,
    /// A quantile.
    Quantile {
        /// Its name as configured, such as `p95` or `p99.9`.
        name: String,
        /// Between 0 and 1.
        rank: f64,
    },
}

impl Aggregate {
    /// The aggregate of that name: `count sum mean min max first last stddev`, or `pNN` / `pNN.N` between p0 and p100.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Some(match name {
            "count" => Self::Count,
            "sum" => Self::Sum,
            "mean" => Self::Mean,
            "min" => Self::Min,
            "max" => Self::Max,
            "first" => Self::First,
            "last" => Self::Last,
            "stddev" => Self::Stddev,
            _ => Self::Quantile { name: name.to_owned(), rank: quantile_rank(name)? },
        })
    }

    /// Its name in configuration and on the wire.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Self::Count => "count",
            Self::Sum => "sum",
            Self::Mean => "mean",
            Self::Min => "min",
            Self::Max => "max",
            Self::First => "first",
            Self::Last => "last",
            Self::Stddev => "stddev",
            Self::Quantile { name, .. } => name,
        }
    }
}

/// `p95` is 0.95, `p99.9` is 0.999; `None` for anything else.
fn quantile_rank(name: &str) -> Option<f64> {
    let percent = name.strip_prefix('p')?;
    let (whole, fraction) = percent.split_once('.').unwrap_or((percent, "0"));
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if !is_number(whole) || !is_number(fraction) || whole.len() > 3 || fraction.len() > 3 {
        return None;
    }
    let percent: f64 = percent.parse().ok()?;
    (percent <= 100.0).then_some(percent / 100.0)
}
