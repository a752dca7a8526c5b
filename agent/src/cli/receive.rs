//! `holdfast receive`: the reference receiver as a command.

use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use tokio_util::sync::CancellationToken;

use crate::receive;

/// Receive batches over HTTP and write them as NDJSON, each record exactly once.
///
/// Records go to DIR/AGENT/STREAM.ndjson, missing numbers with their reasons to DIR/AGENT/gaps.ndjson. GET / tells what
/// was received, GET /healthz whether it runs. It asks nobody who they are: keep it on a trusted network, or put a proxy in front of it.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Where to listen for batches; port 0 lets the system choose, and the address is printed
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:9551")]
    pub listen: SocketAddr,

    /// Where to write; made if needed. One receiver at a time may use it
    #[arg(long, value_name = "DIR")]
    pub data: PathBuf,
}

/// Runs until `stop`.
///
/// # Errors
/// If the address or the folder cannot be used, or the folder cannot be closed cleanly.
pub async fn run(args: Args, stop: CancellationToken) -> anyhow::Result<ExitCode> {
    let receiver = receive::bind(args.listen, &args.data).await.context("cannot start the receiver")?;
    writeln!(std::io::stdout(), "listening on http://{}", receiver.local_addr())?;
    receiver.run(stop).await.context("cannot stop the receiver cleanly")?;
    Ok(ExitCode::SUCCESS)
}
