//! What becomes of a message: give it a topic template, a topic and a payload, and it prints the readings as a sink
//! would get them, or why the payload is rejected.
//!
//! ```sh
//! cargo run -p holdfast --example decode
//! cargo run -p holdfast --example decode -- 'tele/{device}/SENSOR' tele/plug-3/SENSOR \
//!     '{"Time":"2026-03-01T07:15:00","ENERGY":{"Power":63}}' /Time
//! ```
//!
//! The last argument, the JSON pointer to the device's time, may be left out.

use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use holdfast::clock::Clock;
use holdfast::ingest::decode::{Decoded, Decoder};
use holdfast::ingest::settings::{Pointer, Subscription};
use holdfast::ingest::topic::Template;
use holdfast::stream::Seq;
use holdfast::wire;

#[expect(clippy::print_stdout, reason = "this is what it is for")]
fn main() -> anyhow::Result<ExitCode> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let (template, topic, payload, time) = match *arguments.as_slice() {
        [] => (
            "sensors/{line}/{device}/telemetry",
            "sensors/hall-a/press-7/telemetry",
            r#"{"ts":1795148112.5,"temperature":21.53,"state":{"running":true,"mode":"auto"}}"#,
            Some("/ts"),
        ),
        [template, topic, payload] => (template, topic, payload, None),
        [template, topic, payload, time] => (template, topic, payload, Some(time)),
        _ => anyhow::bail!("expected no arguments, or TEMPLATE TOPIC PAYLOAD [TIME]"),
    };

    let template = Template::parse(template).context("the topic template")?;
    let time = time.map(Pointer::parse).transpose().context("the pointer to the time")?;
    let subscription = Subscription { time, ..Subscription::new(template) };
    // One decoder serves one connection: it remembers what its topics and payloads have in common.
    let mut decoder = Decoder::new(&Arc::from("example"), Arc::from([subscription]));

    let readings = match decoder.decode(topic, payload.as_bytes(), Clock::system().wall(), None) {
        Decoded::Reading(reading) => vec![reading],
        Decoded::Readings(readings) => readings,
        Decoded::Nothing => {
            println!("skipped: there is no value in it");
            return Ok(ExitCode::SUCCESS);
        }
        Decoded::Rejected(reason) => {
            println!("rejected: {reason}");
            return Ok(ExitCode::FAILURE);
        }
    };
    for (seq, reading) in (1..).map(Seq).zip(&readings) {
        let mut line = Vec::new();
        wire::write_reading(seq, reading, &mut line);
        println!("{}", String::from_utf8(line)?);
    }
    Ok(ExitCode::SUCCESS)
}
