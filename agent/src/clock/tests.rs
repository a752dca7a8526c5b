use std::sync::Arc;

use proptest::prelude::{Strategy, any, prop_oneof, proptest};
use proptest::{collection, prop_assert};

use super::*;
use crate::reading::Pace;

/// After this version was written.
const NOON: Timestamp = Timestamp(1_800_000_000_000_000);
const SECOND: i64 = 1_000_000;
const HOUR: i64 = 3_600 * SECOND;

fn seen(wall: i64, uptime_micros: i64, state: ClockState) -> Seen {
    Seen { wall: Timestamp(wall), uptime_micros, state }
}

fn line() -> Line {
    Line::new(Uuid::from_u128(1))
}

/// A line whose machine was started at [`NOON`], and what it is asked.
struct Case {
    line: Line,
    uptime: i64,
    offset: i64,
    state: ClockState,
}

impl Case {
    fn new() -> Self {
        Self { line: line(), uptime: 0, offset: NOON.0, state: ClockState::Synced }
    }

    fn after(&mut self, micros: i64) -> Stamp {
        self.uptime += micros;
        self.line.stamp(seen(self.offset + self.uptime, self.uptime, self.state))
    }
}

#[test]
fn stamps_follow_a_wall_clock_that_is_right_and_say_nothing_more() {
    let mut case = Case::new();
    assert_eq!(case.after(5), Stamp { time: Timestamp(NOON.0 + 5), line: None });
    case.offset += 3 * HOUR;
    assert_eq!(case.after(5), Stamp { time: Timestamp(NOON.0 + 10 + 3 * HOUR), line: None });
}

#[test]
fn after_a_step_back_stamps_go_on_at_half_speed_until_the_wall_has_caught_up() {
    let mut case = Case::new();
    let before = case.after(HOUR).time;
    case.offset -= 3 * HOUR;
    let stamp = case.after(0);
    assert_eq!(stamp.time, before);
    let line = stamp.line.unwrap();
    let later = case.after(2 * HOUR);
    assert_eq!(later.time.micros_since(before), HOUR);
    assert!(
        Arc::ptr_eq(&line, later.line.as_ref().unwrap()),
        "all that is stamped meanwhile shares one line"
    );
    // The machine was started where the wall clock says so now.
    let true_time = Timestamp(case.offset + case.uptime);
    assert_eq!(line.corrected(later.time, case.offset), true_time);
    assert!(case.after(4 * HOUR - 10).line.is_none(), "within a second of the wall");
    assert_eq!(case.after(20), Stamp { time: Timestamp(case.offset + case.uptime), line: None });
}

#[test]
fn while_the_wall_shows_nothing_that_can_be_true_stamps_run_on() {
    let mut case = Case::new();
    case.line.resume(NOON, seen(0, 0, ClockState::Unsynced));
    (case.offset, case.state) = (0, ClockState::Unsynced);
    let stamp = case.after(HOUR);
    assert_eq!((stamp.time, stamp.line.unwrap().pace), (Timestamp(NOON.0 + HOUR), Pace::Full));
    // Synchronised: today, which is later.
    (case.offset, case.state) = (NOON.0 + HOUR, ClockState::Synced);
    assert_eq!(case.after(1), Stamp { time: Timestamp(NOON.0 + 2 * HOUR + 1), line: None });
}

#[test]
fn readings_of_an_unset_clock_share_a_line_and_are_corrected_by_it() {
    let mut case = Case::new();
    (case.offset, case.state) = (0, ClockState::Unsynced);
    let (first, second) = (case.after(SECOND), case.after(60 * SECOND));
    let line = first.line.unwrap();
    assert!(Arc::ptr_eq(&line, &second.line.unwrap()));
    assert_eq!(line.corrected(second.time, NOON.0), Timestamp(NOON.0 + 61 * SECOND));
    case.offset = 500 * SECOND;
    let third = case.after(SECOND);
    assert!(!Arc::ptr_eq(&line, third.line.as_ref().unwrap()), "a step begins another line");
    assert_eq!(third.line.unwrap().corrected(third.time, NOON.0), Timestamp(NOON.0 + 62 * SECOND));
}

#[test]
fn a_small_step_back_is_waited_out_without_a_word() {
    let mut case = Case::new();
    let before = case.after(HOUR).time;
    case.offset -= SECOND / 2;
    let stamp = case.after(10);
    assert_eq!(stamp, Stamp { time: Timestamp(before.0 + 5), line: None });
}

#[test]
fn the_line_goes_on_where_an_earlier_run_ended() {
    let mut case = Case::new();
    case.line.resume(Timestamp(NOON.0 + HOUR), seen(NOON.0, 0, ClockState::Synced));
    let stamp = case.after(SECOND);
    assert_eq!(stamp.time, Timestamp(NOON.0 + HOUR + SECOND / 2));
    assert_eq!(stamp.line.unwrap().corrected(stamp.time, NOON.0), Timestamp(NOON.0 + SECOND));
    assert_eq!(case.line.ahead(seen(case.offset + case.uptime, case.uptime, case.state)), HOUR - SECOND / 2);
}

#[test]
fn a_wall_clock_at_the_end_of_all_time_does_no_harm() {
    let mut line = line();
    line.resume(Timestamp::MAX, seen(NOON.0, 0, ClockState::Synced));
    for uptime in [0, HOUR, i64::MAX / 2, i64::MAX] {
        assert_eq!(line.stamp(seen(NOON.0, uptime, ClockState::Synced)).time, Timestamp::MAX);
    }
}

fn steps() -> impl Strategy<Value = Vec<(i64, i64, bool)>> {
    let jump = prop_oneof![
        4 => proptest::strategy::Just(0_i64),
        1 => -10 * SECOND..10 * SECOND,
        1 => -5 * HOUR..5 * HOUR,
        1 => any::<i32>().prop_map(|seconds| i64::from(seconds) * SECOND),
    ];
    collection::vec((0..10 * SECOND, jump, any::<bool>()), 1..60)
}

proptest! {
    #[test]
    fn stamps_never_go_back_and_are_always_corrected_to_when_they_were_given(steps in steps()) {
        let mut case = Case::new();
        let mut before = Timestamp::MIN;
        for (elapsed, jump, is_synced) in steps {
            case.offset = (case.offset + jump).clamp(0, Timestamp::MAX.0 / 2);
            case.state = if is_synced { ClockState::Synced } else { ClockState::Unsynced };
            let stamp = case.after(elapsed);
            prop_assert!(stamp.time >= before);
            before = stamp.time;
            match stamp.line {
                Some(line) => {
                    let off = line.corrected(stamp.time, 0).0 - case.uptime;
                    prop_assert!(off.abs() <= 10_001, "{off}");
                }
                None => prop_assert!((stamp.time.0 - case.offset - case.uptime).abs() <= SECOND),
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_simulated_wall_jumps_and_its_stamps_do_not() {
    let wall: &'static SimulatedWall = Box::leak(Box::new(SimulatedWall::showing(NOON)));
    let clock = Clock::simulated(wall);
    let first = clock.stamp();
    wall.jump(-HOUR);
    tokio::time::advance(Duration::from_secs(10)).await;
    let second = clock.stamp();
    assert_eq!(second.time.micros_since(first.time), 5 * SECOND);
    assert_eq!(clock.ahead(), Duration::from_secs(3_595));
    assert_eq!(clock.wall(), Timestamp(NOON.0 - HOUR + 10 * SECOND));
}

#[test]
fn the_kernel_answers() {
    assert!(kernel::uptime_micros() > 0);
    assert!(!kernel::boot_id().is_nil());
    let now = kernel::uptime_micros();
    assert_eq!(kernel::is_synced(now), kernel::is_synced(now + 1), "an answer holds for a second");
}
