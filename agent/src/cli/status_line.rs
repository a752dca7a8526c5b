//! What `systemctl status` shows of the agent: the sentence that the page and `holdfast status` show, told when it changes.

use std::time::Duration;

use sd_notify::NotifyState;
use tokio::time::{Interval, interval};

use crate::status::{Inputs, Status};

/// How old the sentence may be. Whoever wants to know it to the second asks `holdfast status`.
const TELL_EVERY: Duration = Duration::from_secs(5);
/// systemd drops a message of more than 4096 bytes. A character takes four at most.
const MAX_CHARS: usize = 500;

/// What was told last, and when to look again.
pub(super) struct StatusLine {
    told: String,
    looks: Interval,
    is_asked_for: bool,
}

impl StatusLine {
    /// Nothing was told yet.
    pub(super) fn new() -> Self {
        let is_asked_for = std::env::var_os("NOTIFY_SOCKET").is_some();
        Self { told: String::new(), looks: interval(TELL_EVERY), is_asked_for }
    }

    /// Waits until it is time to look again; for ever if nobody wants to know. Cancel-safe.
    pub(super) async fn due(&mut self) {
        if !self.is_asked_for {
            return std::future::pending().await;
        }
        self.looks.tick().await;
    }

    /// What is to be told now, if that is something new.
    pub(super) fn news(&mut self, inputs: &Inputs) -> Option<NotifyState<'_>> {
        let status = Status::read(inputs);
        let line = line(status.state.name(), &status.summary);
        if line == self.told {
            return None;
        }
        self.told = line;
        Some(NotifyState::Status(&self.told))
    }
}

/// One line: errors of others may be part of the summary, and a line break would begin another message to systemd.
fn line(state: &str, summary: &str) -> String {
    let text = format!("{state}: {summary}");
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(MAX_CHARS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::fixture::rooms;

    #[test]
    fn a_line_is_one_line_that_systemd_takes() {
        assert_eq!(line("online", "All\nWATCHDOG=trigger"), "online: All WATCHDOG=trigger");
        assert_eq!(line("online", &"€".repeat(5_000)).chars().count(), MAX_CHARS);
    }

    #[tokio::test]
    async fn only_news_is_told() {
        let (rooms, inputs) = rooms();
        let mut line = StatusLine::new();
        assert!(line.news(&inputs).is_some());
        assert!(line.news(&inputs).is_none());
        rooms.vitals.send_modify(|vitals| {
            vitals.get_mut("sink cloud").unwrap().silent = crate::pulse::LIMIT * 2;
        });
        let Some(NotifyState::Status(told)) = line.news(&inputs) else { panic!("a hung room is news") };
        assert!(told.contains("sink cloud"), "{told}");
    }
}
