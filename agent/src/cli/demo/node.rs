//! The demo's node: a microcontroller without hardware, behind a pty. It counts a sample as acknowledged when the agent has told
//! it so, which it does only after the sample is on disk.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use firmware_bridge::frame::Channel;
use firmware_bridge::value::{Kind, Value};

use super::sensors::Tally;
use super::signals::{Device, Measure};
use crate::blocking::blocking;
use crate::clock::Clock;
use crate::source::serial::simulated;

/// The node's name, and that of its source.
pub(super) const NODE: &str = "press-1";
/// Two samples a second.
const INTERVAL: Duration = Duration::from_millis(500);
/// After the stop, this long the node waits for the acks it has not got.
const ACK_DEADLINE: Duration = Duration::from_secs(20);
/// How often it is asked meanwhile.
const ASK: Duration = Duration::from_millis(50);
/// The device whose signals it measures: a press has bearings like a pump.
const PUMP: usize = 2;
/// `n` is what the verdict counts by; the others are the fields of the device, in its order.
const CHANNELS: &[Channel<'static>] = &[
    Channel::new("n", "", Kind::Int),
    Channel::new("vibration_mm_s", "mm/s", Kind::Single),
    Channel::new("bearing_c", "°C", Kind::Single),
    Channel::new("speed_rpm", "1/min", Kind::Single),
];

/// The node at work.
#[derive(Debug)]
pub(super) struct Wired {
    node: Arc<simulated::Node>,
    is_plugged_in: bool,
}

impl Wired {
    /// Starts it, with its port in `folder`, plugged in.
    ///
    /// # Errors
    /// If the system has no pty or thread left.
    pub(super) fn start(folder: &Path, seed: u64) -> io::Result<Self> {
        let mut device = Device::new(PUMP, !seed);
        let measure = move |n: u64| values(&mut device, n);
        let settings = simulated::Settings {
            id: NODE,
            channels: CHANNELS,
            interval: INTERVAL,
            measure: Box::new(measure),
        };
        let node = simulated::Node::start(folder.join("tty-press"), settings, Clock::system())?;
        node.plug_in()?;
        Ok(Self { node: Arc::new(node), is_plugged_in: true })
    }

    /// Where its port is.
    pub(super) fn path(&self) -> &Path {
        self.node.path()
    }

    /// Plugs it in or pulls it out; true if that is a change.
    ///
    /// # Errors
    /// If there is no port to be had.
    pub(super) fn plug(&mut self, plug: Plug) -> io::Result<bool> {
        let is_in = plug == Plug::In;
        if self.is_plugged_in == is_in {
            return Ok(false);
        }
        if is_in { self.node.plug_in() } else { self.node.unplug() }?;
        self.is_plugged_in = is_in;
        Ok(true)
    }

    /// What it did so far.
    pub(super) async fn tally(&self) -> Tally {
        let node = Arc::clone(&self.node);
        let (kept, taken) = blocking(move || node.count()).await.unwrap_or_default();
        Tally { published: taken, acked: taken.saturating_sub(kept) }
    }

    /// Lets it measure no more and wait (a while) for its acks; what it did.
    pub(super) async fn stop(&self) -> Tally {
        self.node.rest();
        let deadline = Clock::system().monotonic() + ACK_DEADLINE;
        loop {
            let tally = self.tally().await;
            if tally.acked == tally.published || Clock::system().monotonic() >= deadline {
                return tally;
            }
            tokio::time::sleep(ASK).await;
        }
    }
}

/// Whether it is plugged in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Plug {
    In,
    Out,
}

/// The values of the nth sample, in the order of [`CHANNELS`].
fn values(device: &mut Device, n: u64) -> Vec<Value> {
    let at = INTERVAL * u32::try_from(n).unwrap_or(u32::MAX);
    let fields = device.sample(at.as_secs_f64());
    let number = |(_, measure): (&str, Measure)| match measure {
        // As many digits as the sensor has.
        Measure::Number(value, digits) => Some(Value::Single(format!("{value:.digits$}").parse().ok()?)),
        Measure::Flag(flag) => Some(Value::Bool(flag)),
        Measure::Word(_) => None,
    };
    std::iter::once(Value::Int(n.cast_signed())).chain(fields.into_iter().filter_map(number)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::demo::signals::MEASURED;

    #[test]
    fn each_sample_has_a_value_for_each_channel() {
        let mut device = Device::new(PUMP, 1);
        for n in 1..500 {
            let values = values(&mut device, n);
            assert_eq!(values.len(), CHANNELS.len());
            assert!(
                values.iter().zip(CHANNELS).all(|(value, channel)| value.is_of(channel.kind)),
                "{values:?}"
            );
        }
        let names: Vec<_> = device.sample(300.0).iter().map(|(name, _)| *name).take(3).collect();
        assert_eq!(names, CHANNELS[1..].iter().map(|channel| channel.name.as_str()).collect::<Vec<_>>());
        assert!(names.iter().all(|name| MEASURED.contains(name)), "it gets windows");
    }
}
