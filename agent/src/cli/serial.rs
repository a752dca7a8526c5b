//! `holdfast serial`: serial ports, as a technician in front of one needs them.

mod monitor;
mod ports;
mod seen;
#[cfg(test)]
mod tests;
mod viewer;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::builder::PossibleValuesParser;
use clap::builder::TypedValueParser as _;
use reqwest::Url;
use tokio_util::sync::CancellationToken;

use super::demo::duration;
use crate::clock::Clock;
use crate::source::port::{DataBits, FlowControl, Parity, Place, Settings, StopBits};
use seen::Understood;
use viewer::Expected;

/// Look at serial ports
#[derive(Clone, Debug, clap::Subcommand)]
pub enum Command {
    /// Show live what comes from a serial port: frames of a node, or lines of text
    ///
    /// A node keeps what it measures until a host takes it. So the monitor welcomes a node, that it speaks, but never acknowledges a
    /// record: the node keeps all of it, and the agent gets it afterwards, from where its books end. Three things remain:
    ///
    /// - While the agent does not have the port, a node whose memory is full gives up its oldest records, and declares them. Do not leave
    ///   the monitor running for longer than that takes.
    ///
    /// - Boards that only transmit, and lines of text, say everything once: what is shown here does not reach the agent.
    ///
    /// - Many boards reset when their port is opened, whoever opens it, and lose what they hold.
    ///
    /// A port has one user at a time: stop the agent, or take the source out of its configuration and reload. A serial server (tcp://…) may
    /// let both in; then the monitor first listens, and sends nothing while the node speaks to somebody else.
    ///
    /// It waits for a port that is not plugged in. Exit code 1: the port cannot be used, or nothing that makes sense came within
    /// --duration; 2: bad usage.
    Monitor(Args),
    /// List the ports of this machine, and who may open them
    List,
}

/// What `holdfast serial monitor` is told.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// The port, such as /dev/ttyUSB0 or a link under /dev/serial/by-id; or tcp://HOST:PORT of a serial server
    #[arg(value_name = "PATH", value_parser = place)]
    pub at: Place,

    /// Symbols a second
    #[arg(long, default_value_t = Settings::DEFAULT_BAUD, value_parser = clap::value_parser!(u32).range(1..=16_000_000))]
    pub baud: u32,

    /// Bits in a character
    #[arg(long, value_name = "BITS", default_value = "8", value_parser = data_bits())]
    pub data_bits: DataBits,

    /// The check bit of a character
    #[arg(long, default_value = "none", value_parser = parity())]
    pub parity: Parity,

    /// Bits behind a character
    #[arg(long, value_name = "BITS", default_value = "1", value_parser = stop_bits())]
    pub stop_bits: StopBits,

    /// How the one side tells the other to wait
    #[arg(long, value_name = "HOW", default_value = "none", value_parser = flow_control())]
    pub flow_control: FlowControl,

    /// What to expect; auto: frames when frames come, lines when text comes
    #[arg(long, value_enum, default_value_t = Protocol::Auto)]
    pub protocol: Protocol,

    /// Send nothing at all; a node that is not yet welcome then says only hello
    #[arg(long)]
    pub listen_only: bool,

    /// One JSON object a line
    #[arg(long)]
    pub json: bool,

    /// End after so many samples, events and lines
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub count: Option<u64>,

    /// End after this long, such as "30s" or "5m"
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub duration: Option<Duration>,
}

/// What is spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Protocol {
    /// Whatever comes
    Auto,
    /// The frames of firmware-bridge
    Bridge,
    /// Lines of text
    Lines,
}

impl Protocol {
    fn expected(self) -> Expected {
        match self {
            Self::Auto => Expected::Anything,
            Self::Bridge => Expected::Only(Understood::Bridge),
            Self::Lines => Expected::Only(Understood::Lines),
        }
    }
}

impl Args {
    fn port(&self) -> Settings {
        Settings {
            at: self.at.clone(),
            baud: self.baud,
            data_bits: self.data_bits,
            parity: self.parity,
            stop_bits: self.stop_bits,
            flow_control: self.flow_control,
        }
    }
}

/// Runs the command until it is done or `stop`.
///
/// # Errors
/// If the port cannot be used, or `out` does not take what is to be shown.
pub async fn run(
    command: &Command,
    clock: Clock,
    stop: &CancellationToken,
    out: &mut impl Write,
) -> anyhow::Result<ExitCode> {
    match command {
        Command::Monitor(args) => monitor::run(args, clock, stop, out).await,
        Command::List => ports::list(out).map(|()| ExitCode::SUCCESS),
    }
}

/// A path, or the URL of a serial server.
fn place(text: &str) -> Result<Place, String> {
    if !text.contains("://") {
        return Ok(Place::Path(PathBuf::from(text)));
    }
    let expected = || format!("{text:?} is no serial server; write tcp://HOST:PORT");
    let url = Url::parse(text).map_err(|_| expected())?;
    let is_plain = url.username().is_empty() && url.query().is_none() && matches!(url.path(), "" | "/");
    match (url.scheme(), url.host_str(), url.port()) {
        ("tcp", Some(host), Some(port @ 1..)) if is_plain && !host.is_empty() => {
            Ok(Place::Tcp { host: host.trim_matches(['[', ']']).to_owned(), port })
        }
        _ => Err(expected()),
    }
}

fn data_bits() -> impl clap::builder::TypedValueParser<Value = DataBits> {
    PossibleValuesParser::new(["5", "6", "7", "8"]).map(|text| match text.as_str() {
        "5" => DataBits::Five,
        "6" => DataBits::Six,
        "7" => DataBits::Seven,
        _ => DataBits::Eight,
    })
}

fn parity() -> impl clap::builder::TypedValueParser<Value = Parity> {
    PossibleValuesParser::new(["none", "odd", "even"]).map(|text| match text.as_str() {
        "odd" => Parity::Odd,
        "even" => Parity::Even,
        _ => Parity::None,
    })
}

fn stop_bits() -> impl clap::builder::TypedValueParser<Value = StopBits> {
    PossibleValuesParser::new(["1", "2"]).map(|text| if text == "2" { StopBits::Two } else { StopBits::One })
}

fn flow_control() -> impl clap::builder::TypedValueParser<Value = FlowControl> {
    PossibleValuesParser::new(["none", "software", "hardware"]).map(|text| match text.as_str() {
        "software" => FlowControl::Software,
        "hardware" => FlowControl::Hardware,
        _ => FlowControl::None,
    })
}
