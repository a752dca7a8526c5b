//! What seeds have found, each written down with the cause that was mended.

use std::time::Duration;

use crate::peers::{self, Session};
use crate::plan::{Limit, Plan};
use crate::run::{Run, in_virtual_time};
use crate::seeds::formatted;

/// Windows begin at the head of the log. Where that was not durable when the power went, they began anew at a later head, and the
/// readings acknowledged in between were in no window.
#[test]
fn readings_acknowledged_before_windows_first_saved_their_state_are_in_a_window() {
    let formatted = formatted();
    for millis in (0..1_500).step_by(75) {
        let verdict = in_virtual_time(millis, async {
            let plan =
                Plan { seed: millis, commit_interval: Duration::from_secs(5), ..Plan::quiet(Limit::None) };
            let mut run = Run::new(plan, formatted.copy());
            run.boot().await;
            for peer in 0..2 {
                peers::connect(&run.world, peer, Session::Kept);
                run.world.with(|state| peers::say(state, peer, 4));
            }
            run.pass(Duration::from_millis(millis)).await;
            run.disk.cut_now();
            run.pass(Duration::from_millis(100)).await;
            run.finish().await
        });
        let summary = verdict.unwrap_or_else(|what| panic!("power cut after {millis} ms: {what}"));
        assert!(summary.acked > 0);
    }
}

/// A device counted as silent only once something else was heard after its source had come back: results waited for ever.
#[test]
fn what_a_device_said_comes_out_when_its_source_comes_back_and_nothing_more_is_heard() {
    let formatted = formatted();
    let verdict = in_virtual_time(1, async {
        let mut run = Run::new(Plan::quiet(Limit::None), formatted.copy());
        run.boot().await;
        peers::connect(&run.world, 0, Session::Kept);
        run.world.with(|state| peers::say(state, 0, 3));
        run.pass(Duration::from_millis(500)).await;
        run.world.with(|state| peers::disconnect(state, 0));
        run.pass(Duration::from_secs(60)).await;
        run.finish().await
    });
    assert!(verdict.unwrap().windows > 0);
}
