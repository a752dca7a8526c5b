//! `holdfast status`: what the running agent says of itself.

use std::io::Write;

use clap::Args;

use crate::status::client::{self, Ways};
use crate::status::{Settings, Status, text};

/// How `holdfast status` answers. Where the configuration is, the command line as a whole knows.
#[derive(Args, Clone, Debug)]
pub struct StatusArgs {
    /// Print the status as JSON, as /api/v1/status answers it
    #[arg(long)]
    pub json: bool,
}

/// Asks the agent that runs with `settings` and prints its status.
///
/// # Errors
/// If the agent does not run or cannot be asked, or `out` does not take the answer.
pub async fn run(args: &StatusArgs, settings: &Settings, out: &mut impl Write) -> anyhow::Result<()> {
    if args.json {
        // As it came: a newer agent may say more than this program knows.
        let status: serde_json::Value = client::get(settings, "/api/v1/status", Ways::Any).await?;
        writeln!(out, "{status:#}")?;
    } else {
        let status: Status = client::get(settings, "/api/v1/status", Ways::Any).await?;
        write!(out, "{}", text::render(&status))?;
    }
    Ok(())
}
