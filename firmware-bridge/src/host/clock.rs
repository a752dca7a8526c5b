//! A node's time into the host's: offset and drift, from exchanges, without a clock of its own.
//!
//! An exchange says: when the node's counter stood there, it was between then and then at the host. From several of them,
//! weighted by how narrow they are, follow the offset and the drift, which is up to some percent where a
//! microcontroller runs on its internal oscillator. From a node that only transmits we know the moments of arrival: of
//! those close together the quickest counts.

use std::collections::VecDeque;

use super::Now;

/// So many observations are looked at: eight minutes of exchanges.
const POINTS: usize = 16;
/// Observations closer together than this count as one: the better.
const APART_US: i64 = 10_000_000;
/// Drift is reckoned from observations that span at least this; before, it is taken for none.
const SPAN_US: i64 = 60_000_000;
/// No oscillator is further off.
const MAX_DRIFT: f64 = 0.05;
/// What we assume of an arrival: transmission, the adapter's buffer, our own scheduling.
const ARRIVAL_ERROR_US: i64 = 20_000;
/// The node's counter has steps of a millisecond.
const STEP_US: i64 = 1_000;
/// An observation that lies further off than that, drift left aside, means that the node's clock has jumped.
const JUMP_US: i64 = 2_000_000;
/// Order is kept against estimates that move back by less than this; more means that the host's clock was set.
const HOLD_US: i64 = 10_000_000;

/// How the node's counter and our monotonic clock stood at the same moment.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Point {
    node_us: i64,
    host_us: i64,
    /// How far off that may be.
    error_us: i64,
}

impl Point {
    /// What has to be added to the node's time.
    fn offset_us(&self) -> i64 {
        self.host_us - self.node_us
    }
}

/// What is known of the clock of one node since its reset.
#[derive(Clone, Debug, Default)]
pub struct NodeClock {
    points: VecDeque<Point>,
    /// True as soon as there was an exchange: arrivals say nothing more.
    has_exchanged: bool,
    /// Added because the node's counter has only 32 bits.
    wrapped_ms: u64,
    /// The highest time of the node, unwrapped.
    highest_ms: u64,
    /// The last time that was given out: the node's (unwrapped), and ours.
    last: Option<(u64, i64)>,
}

impl NodeClock {
    /// The node answered: its counter stood at `uptime_ms` at some moment between `sent_us` and `received_us` of our
    /// monotonic clock.
    pub fn exchanged(&mut self, uptime_ms: u64, sent_us: u64, received_us: u64) {
        if !self.has_exchanged {
            self.points.clear();
            self.has_exchanged = true;
        }
        let (sent_us, received_us) = (signed(sent_us), signed(received_us));
        let error_us = received_us.saturating_sub(sent_us).max(0) / 2;
        // The counter stands at a millisecond until the next: on average half a one has passed.
        let node_us = self.node_us(uptime_ms).saturating_add(STEP_US / 2);
        let host_us = sent_us.saturating_add(error_us);
        self.add(Point { node_us, host_us, error_us: error_us.saturating_add(STEP_US) });
    }

    /// Something came that the node sent when its counter stood at `uptime_ms`, or later.
    pub fn arrived(&mut self, uptime_ms: u64, received_us: u64) {
        if !self.has_exchanged {
            let node_us = self.node_us(uptime_ms);
            self.add(Point { node_us, host_us: signed(received_us), error_us: ARRIVAL_ERROR_US });
        }
    }

    fn add(&mut self, point: Point) {
        let off_us = self.host_us(point.node_us).map(|host_us| (point.host_us.saturating_sub(host_us)).abs());
        let since_us = self.points.back().map_or(0, |last| point.node_us.saturating_sub(last.node_us).abs());
        if self.has_exchanged
            && off_us.is_some_and(|off_us| off_us > JUMP_US + since_us / 10 + point.error_us)
        {
            self.points.clear();
        }
        match self.points.back_mut() {
            Some(last) if point.node_us.saturating_sub(last.node_us) < APART_US => {
                let is_better = if self.has_exchanged {
                    point.error_us <= last.error_us
                } else {
                    point.offset_us() <= last.offset_us()
                };
                if is_better {
                    *last = point;
                }
            }
            Some(_) | None => self.points.push_back(point),
        }
        if self.points.len() > POINTS {
            self.points.pop_front();
        }
    }

    /// The node's time in microseconds, with what its counter lost by wrapping at 32 bits.
    fn node_us(&mut self, uptime_ms: u64) -> i64 {
        signed(self.unwrap(uptime_ms).saturating_mul(1_000))
    }

    fn unwrap(&mut self, uptime_ms: u64) -> u64 {
        const ROUND: u64 = 1 << 32;
        let mut whole_ms = uptime_ms.saturating_add(self.wrapped_ms);
        if uptime_ms < ROUND && whole_ms.saturating_add(ROUND / 2) < self.highest_ms {
            self.wrapped_ms = self.wrapped_ms.saturating_add(ROUND);
            whole_ms = whole_ms.saturating_add(ROUND);
        }
        self.highest_ms = self.highest_ms.max(whole_ms);
        whole_ms
    }

    /// How much slower the node's clock is than ours: 0.01 means that it loses 10 ms each second.
    #[must_use]
    pub fn drift(&self) -> f64 {
        self.line().map_or(0.0, |(_, _, drift)| drift)
    }

    /// A point (node's time and offset) and the slope of the line through all of them.
    #[expect(clippy::cast_precision_loss, reason = "differences of minutes, in microseconds")]
    fn line(&self) -> Option<(i64, f64, f64)> {
        let (first, last) = (self.points.front()?, self.points.back()?);
        if last.node_us.saturating_sub(first.node_us) < SPAN_US {
            return Some((last.node_us, last.offset_us() as f64, 0.0));
        }
        let (mut weights, mut node, mut offset) = (0.0, 0.0, 0.0);
        let relative = |point: &Point| {
            ((point.node_us - last.node_us) as f64, (point.offset_us() - last.offset_us()) as f64)
        };
        let weight = |point: &Point| (point.error_us as f64).powi(-2);
        for point in &self.points {
            let (x, y) = relative(point);
            weights += weight(point);
            node += weight(point) * x;
            offset += weight(point) * y;
        }
        let (node, offset) = (node / weights, offset / weights);
        let (mut square, mut product) = (0.0, 0.0);
        for point in &self.points {
            let (x, y) = relative(point);
            square += weight(point) * (x - node) * (x - node);
            product += weight(point) * (x - node) * (y - offset);
        }
        let drift = if square > 0.0 { (product / square).clamp(-MAX_DRIFT, MAX_DRIFT) } else { 0.0 };
        // The line at the last point, which is near what will be asked for.
        Some((last.node_us, last.offset_us() as f64 + offset - node * drift, drift))
    }

    /// Our monotonic clock at that time of the node (unwrapped, in microseconds).
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        reason = "the offset is below 2^53 µs: 285 years"
    )]
    fn host_us(&self, node_us: i64) -> Option<i64> {
        let (at_us, offset_us, drift) = self.line()?;
        let offset_us = offset_us + node_us.saturating_sub(at_us) as f64 * drift;
        Some(node_us.saturating_add(offset_us.round() as i64))
    }

    /// The wall time at which the node's counter stood at `uptime_ms`: microseconds since the Unix epoch. Not after now,
    /// and not before an earlier record's, unless the host's own clock was set back.
    pub fn wall_us(&mut self, uptime_ms: u64, now: &Now) -> i64 {
        let node_us = self.node_us(uptime_ms);
        let whole_ms = self.unwrap(uptime_ms);
        let age_us =
            self.host_us(node_us).map_or(0, |host_us| signed(now.monotonic_us).saturating_sub(host_us));
        let mut wall_us = now.wall_us.saturating_sub(age_us.max(0));
        if let Some((before_ms, before_us)) = self.last
            && before_ms <= whole_ms
            && before_us.saturating_sub(wall_us) < HOLD_US
        {
            wall_us = wall_us.max(before_us.saturating_add(i64::from(before_ms < whole_ms)));
        }
        self.last = Some((whole_ms, wall_us));
        wall_us
    }

    /// The last time that was given out.
    #[must_use]
    pub fn last_wall_us(&self) -> Option<i64> {
        self.last.map(|(_, wall_us)| wall_us)
    }

    /// Goes on from a time of the node and ours, as if it had been given out.
    pub fn resume(&mut self, times: Option<(u64, i64)>) {
        self.last = times.map(|(uptime_ms, wall_us)| (self.unwrap(uptime_ms), wall_us));
    }
}

/// Far from any limit in practice.
fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const WALL: i64 = 1_795_000_000_000_000;

    fn now(monotonic_us: u64) -> Now {
        Now { monotonic_us, wall_us: WALL + signed(monotonic_us), is_synced: true }
    }

    /// The node's counter at a time of ours, if it began at `start_us` and runs slow by `drift`.
    #[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    fn counter(start_us: u64, drift: f64, at_us: u64) -> u64 {
        ((at_us - start_us) as f64 / (1.0 + drift) / 1_000.0) as u64
    }

    #[test]
    fn a_sample_is_as_old_as_the_node_says() {
        let mut clock = NodeClock::default();
        clock.exchanged(500, 10_000_000, 10_002_000);
        let wall_us = clock.wall_us(400, &now(10_050_000));
        assert!((wall_us - WALL - 9_900_500).abs() < 1_000, "{}", wall_us - WALL);
    }

    #[test]
    fn without_any_observation_it_is_now() {
        assert_eq!(NodeClock::default().wall_us(400, &now(7)), WALL + 7);
    }

    #[test]
    fn drift_is_found_and_applied_to_what_waited_long() {
        for drift in [-0.02, -0.000_05, 0.0, 0.000_05, 0.02] {
            let mut clock = NodeClock::default();
            for second in (3_000..3_600).step_by(30) {
                let sent_us = second * 1_000_000;
                clock.exchanged(counter(0, drift, sent_us + 1_500), sent_us, sent_us + 3_000);
            }
            assert!((clock.drift() - drift).abs() < 1e-5, "{drift}: {}", clock.drift());
            // Measured nearly an hour ago, while nobody listened.
            let measured_us = 100_000_000;
            let wall_us = clock.wall_us(counter(0, drift, measured_us), &now(3_600_000_000));
            let off_us = wall_us - WALL - signed(measured_us);
            assert!(off_us.abs() < 40_000, "{drift}: {off_us} µs off");
        }
    }

    #[test]
    fn a_slow_answer_hardly_counts() {
        let mut clock = NodeClock::default();
        for second in (0..300).step_by(30) {
            let sent_us = second * 1_000_000;
            let late_us = if second == 150 { 900_000 } else { 0 };
            clock.exchanged(counter(0, 0.0, sent_us + 1_000 + late_us), sent_us, sent_us + 2_000 + late_us);
        }
        let wall_us = clock.wall_us(299_000, &now(300_000_000));
        assert!((wall_us - WALL - 299_000_000).abs() < 2_000, "{}", wall_us - WALL);
    }

    #[test]
    fn of_arrivals_the_quickest_counts() {
        let mut clock = NodeClock::default();
        for (uptime_ms, late_us) in [(1_000, 50_000), (2_000, 3_000), (3_000, 900_000)] {
            clock.arrived(uptime_ms, uptime_ms * 1_000 + late_us);
        }
        let wall_us = clock.wall_us(3_000, &now(5_000_000));
        assert_eq!(wall_us - WALL, 3_003_000);
    }

    #[test]
    fn a_clock_that_jumped_is_learned_anew() {
        let mut clock = NodeClock::default();
        for second in (0..300).step_by(30) {
            clock.exchanged(second * 1_000, second * 1_000_000, second * 1_000_000 + 1_000);
        }
        // A debugger held the node for an hour.
        clock.exchanged(310_000, 3_910_000_000, 3_910_001_000);
        let wall_us = clock.wall_us(310_000, &now(3_910_002_000));
        assert!((wall_us - WALL - 3_910_000_000).abs() < 2_000, "{}", wall_us - WALL);
    }

    #[test]
    fn a_counter_of_32_bits_may_wrap() {
        let mut clock = NodeClock::default();
        let before = (1_u64 << 32) - 1_000;
        clock.exchanged(before, 10_000_000, 10_000_000);
        let first = clock.wall_us(before, &now(10_000_000));
        let second = clock.wall_us(500, &now(11_600_000));
        assert_eq!(second - first, 1_500_000);
        assert_eq!(clock.wall_us(600, &now(11_600_000)) - second, 100_000);
    }

    #[test]
    fn when_the_hosts_clock_is_set_back_time_follows() {
        let mut clock = NodeClock::default();
        clock.exchanged(0, 0, 0);
        let before = clock.wall_us(1_000, &now(1_000_000));
        let set_back = Now { wall_us: WALL - 3_600_000_000, ..now(2_000_000) };
        assert!(clock.wall_us(2_000, &set_back) < before - 3_000_000_000);
    }

    proptest! {
        #[test]
        fn order_is_kept_whatever_is_observed(
            steps in prop::collection::vec((0..60_000_u64, 0..500_000_u64, any::<bool>()), 1..100)
        ) {
            let mut clock = NodeClock::default();
            let (mut uptime_ms, mut last) = (0, i64::MIN);
            for (pause_ms, late_us, exchanges) in steps {
                uptime_ms += pause_ms;
                let host_us = uptime_ms * 1_000 + late_us;
                if exchanges {
                    clock.exchanged(uptime_ms, uptime_ms * 1_000, host_us);
                } else {
                    clock.arrived(uptime_ms, host_us);
                }
                let wall_us = clock.wall_us(uptime_ms, &now(host_us));
                prop_assert!(wall_us >= last);
                last = wall_us;
            }
        }
    }
}
