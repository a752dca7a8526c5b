//! What the daemon costs, measured from outside: load generators, a broker, the release binary, a cloud that counts.
//!
//! `scripts/bench` builds everything and runs this; `docs/performance.md` says what the figures mean.

mod agent;
mod broker;
mod clock;
mod cloud;
mod emulated;
mod line;
mod load;
mod payload;
mod process;
mod scenarios;
mod table;

use std::io::Write;
use std::path::PathBuf;

use anyhow::{Context, bail};

use crate::scenarios::{ALL, OF_DIST, Options};
use crate::table::Table;

const USAGE: &str = "\
usage: holdfast-bench [--only a,b,…] [--readings N] [--backlog-mib N] [--agent FILE] [--dir DIR] [--perf DIR]

  --only         a saturated through mosquitto, b saturated on the own listener, c 3 000/s through mosquitto,
                 d 50/s for a minute, e backlog of 180 000, f idle, g start, h binary, i 1 000/s on the own
                 listener, serial a line of 921 600 baud; default: all these. Of what scripts/dist has built:
                 packages; amd64, arm64, armhf count instructions in QEMU
  --readings     of the saturated runs (default 1000000)
  --backlog-mib  of the start with a backlog (default 512)
  --agent        the daemon (default: holdfast beside this program)
  --dir          where the stores lie; on the disk that is to be measured (default: /var/tmp)
  --perf         records the saturated runs with perf into this folder";

fn main() -> anyhow::Result<()> {
    let mut only: Option<Vec<String>> = None;
    let beside = std::env::current_exe()?.with_file_name("holdfast");
    let mut options = Options {
        built: beside.with_file_name("../dist"),
        packages: PathBuf::from("dist"),
        agent: beside,
        readings: 1_000_000,
        backlog_mib: 512,
        dir: PathBuf::from("/var/tmp"),
        perf: None,
    };
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let mut value = || args.next().with_context(|| format!("{arg} needs a value\n{USAGE}"));
        match arg.as_str() {
            "--only" => only = Some(value()?.split(',').map(str::to_owned).collect()),
            "--readings" => options.readings = clock::number(&value()?)?,
            "--backlog-mib" => options.backlog_mib = clock::number(&value()?)?,
            "--agent" => options.agent = value()?.into(),
            "--dir" => options.dir = value()?.into(),
            "--perf" => options.perf = Some(value()?.into()),
            _ => bail!("{USAGE}"),
        }
    }
    let before = process::load_average();
    let mut table = Table::default();
    let mut failed = Vec::new();
    let wanted = |key: &str| only.as_ref().map(|only| only.iter().any(|one| one == key));
    let usual = ALL.iter().filter(|scenario| wanted(scenario.key).unwrap_or(true));
    let of_dist = OF_DIST.iter().filter(|scenario| wanted(scenario.key).unwrap_or(false));
    for scenario in usual.chain(of_dist) {
        // One that fails does not take the figures of the others along.
        if let Err(error) = scenario.run(&options, &mut table) {
            failed.push(format!("{error:#}"));
        }
    }
    let mut out = std::io::stdout().lock();
    table.print(&mut out)?;
    let cores = std::thread::available_parallelism()?;
    writeln!(out, "\n{cores} cores; load average {before} before, {} after", process::load_average())?;
    if failed.is_empty() { Ok(()) } else { bail!("{}", failed.join("\n")) }
}
