//! The agent for another processor, in qemu-user: how many instructions it carries out. Unlike its time, that does not depend on
//! how the emulator works or on what else the machine does. What the kernel does for it is not in the figure.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};

use crate::clock::pause;
use crate::process::as_f64;
use crate::scenarios::{IN_FLIGHT, Options, Stage};
use crate::table::{Table, Target};

/// The plugin that counts; the compiler makes it of this.
const PLUGIN: &str = include_str!("instructions.c");
/// So long nothing is to be done.
const IDLE: Duration = Duration::from_secs(10);
/// Readings a second, and how many of them.
const PACE: (u32, u64) = (1_000, 20_000);
/// Of the saturated run. An emulated processor is slow.
const READINGS: u64 = 50_000;
const MILLION: f64 = 1e6;

/// A processor, with what stands for it here.
#[derive(Debug)]
pub(crate) struct Processor {
    triple: &'static str,
    emulator: &'static str,
    /// Where its C library is.
    root: &'static str,
}

pub(crate) const AMD64: Processor =
    Processor { triple: "x86_64-unknown-linux-gnu", emulator: "qemu-x86_64", root: "/" };
pub(crate) const ARM64: Processor = Processor {
    triple: "aarch64-unknown-linux-gnu",
    emulator: "qemu-aarch64",
    root: "/usr/aarch64-linux-gnu",
};
pub(crate) const ARMHF: Processor = Processor {
    triple: "armv7-unknown-linux-gnueabihf",
    emulator: "qemu-arm",
    root: "/usr/arm-linux-gnueabihf",
};

/// Counts what the agent of this processor carries out: to start, to be there, for a thousand readings a second, and for one.
pub(crate) fn measure(
    processor: &Processor,
    options: &Options,
    table: &mut Table,
    name: &'static str,
) -> anyhow::Result<()> {
    let dir = tempfile::tempdir_in(&options.dir)?;
    let counter = Counter { file: dir.path().join("count") };
    let options = Options { agent: program(processor, options, dir.path(), &counter)?, ..options.clone() };

    let stage = Stage::with_listener(&options, "10s")?;
    let started = counter.read()?;
    table.add(
        name,
        "start with an empty store, until ready",
        started / MILLION,
        "M instructions",
        Target::None,
    );

    let before = counter.read()?;
    pause(IDLE);
    let idle = (counter.read()? - before) / IDLE.as_secs_f64();
    table.add(name, "idle, each second", idle / MILLION, "M instructions", Target::None);

    let (rate, readings) = PACE;
    let before = counter.read()?;
    let sent = stage.load(readings).pace(rate)?;
    stage.delivered(&sent)?;
    let each_second = (counter.read()? - before) / sent.started.elapsed().as_secs_f64();
    stage.check_books(readings)?;
    table.add(name, "1 000/s, each second", each_second / MILLION, "M instructions", Target::None);

    let stage = Stage::with_listener(&options, "10s")?;
    let before = counter.read()?;
    let sent = stage.load(READINGS).saturate(IN_FLIGHT)?;
    stage.delivered(&sent)?;
    let each = (counter.read()? - before) / as_f64(READINGS);
    stage.check_books(READINGS)?;
    table.add(name, "saturated, each reading", each, "instructions", Target::None);
    Ok(())
}

/// A file that grows with each instruction; the plugin says how.
struct Counter {
    file: PathBuf,
}

impl Counter {
    fn read(&self) -> anyhow::Result<f64> {
        let bytes = fs::read(&self.file).with_context(|| format!("cannot read {}", self.file.display()))?;
        let count = bytes.get(..8).context("the emulator counts nothing")?.try_into()?;
        Ok(as_f64(u64::from_ne_bytes(count)))
    }
}

/// A script that starts the agent in its emulator, with the counter.
fn program(
    processor: &Processor,
    options: &Options,
    dir: &Path,
    counter: &Counter,
) -> anyhow::Result<PathBuf> {
    let Processor { triple, emulator, root } = processor;
    let binary = options.built.join(triple).join("release/holdfast");
    let binary = fs::canonicalize(&binary)
        .with_context(|| format!("there is no {}; scripts/dist makes it", binary.display()))?;
    let (source, plugin) = (dir.join("instructions.c"), dir.join("instructions.so"));
    fs::write(&source, PLUGIN)?;
    let compiled =
        Command::new("cc").args(["-O2", "-shared", "-fPIC", "-o"]).arg(&plugin).arg(&source).status();
    ensure!(compiled.context("cannot start cc")?.success(), "the plugin does not compile");
    let program = dir.join("holdfast");
    let (binary, plugin, count) = (binary.display(), plugin.display(), counter.file.display());
    fs::write(
        &program,
        format!(
            "#!/bin/sh\nexec {emulator} -L '{root}' -plugin '{plugin},count={count}' '{binary}' \"$@\"\n"
        ),
    )?;
    fs::set_permissions(&program, Permissions::from_mode(0o755))?;
    Ok(program)
}
