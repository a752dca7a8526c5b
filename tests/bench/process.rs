//! What the system says of a process: `/proc/<pid>`.

use std::fs::read_to_string;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::Context;

use crate::clock::number;

/// The unit of `/sys/dev/block/*/stat`, whatever the device's own sectors are.
const SECTOR_BYTES: u64 = 512;
/// The unit of times in `/proc`: USER_HZ, 100 in Linux wherever we run.
const TICKS_PER_SECOND: f64 = 100.0;

/// What a process has used since it started.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Usage {
    /// User and system time, all threads.
    pub(crate) cpu_s: f64,
    /// Bytes that it caused to be written to the disk, by the kernel's own account: whole folios of the page cache. On
    /// kernels where a file system has large folios, a page written into one counts as all of it.
    pub(crate) dirtied_bytes: u64,
    /// Bytes given to write calls: files, and the sockets that are written to by `writev`.
    pub(crate) passed_bytes: u64,
    /// Resident now.
    pub(crate) rss_bytes: u64,
    /// The most that was ever resident.
    pub(crate) peak_rss_bytes: u64,
}

impl Usage {
    pub(crate) fn of(pid: u32) -> anyhow::Result<Self> {
        let read = |name: &str| {
            let path = format!("/proc/{pid}/{name}");
            read_to_string(&path).with_context(|| format!("cannot read {path}"))
        };
        let stat = read("stat")?;
        // The name of the program, in brackets, may hold spaces; utime and stime are fields 14 and 15.
        let (_, fields) = stat.rsplit_once(") ").context("/proc/<pid>/stat has no name")?;
        let mut times = fields.split(' ').skip(11).map(number);
        let mut ticks = || times.next().context("/proc/<pid>/stat is too short")?;
        let ticks = ticks()? + ticks()?;
        let status = read("status")?;
        let io = read("io")?;
        Ok(Self {
            cpu_s: as_f64(ticks) / TICKS_PER_SECOND,
            dirtied_bytes: line(&io, "write_bytes:")?,
            passed_bytes: line(&io, "wchar:")?,
            rss_bytes: line(&status, "VmRSS:")? << 10,
            peak_rss_bytes: line(&status, "VmHWM:")? << 10,
        })
    }
}

/// The number after `key`; a unit behind it is left out.
fn line(text: &str, key: &str) -> anyhow::Result<u64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(key)).with_context(|| format!("no {key}"))?;
    number(rest.trim().trim_end_matches(" kB"))
}

/// Bytes written so far to the device on which `dir` lies, by everybody.
pub(crate) fn device_written_bytes(dir: &Path) -> anyhow::Result<u64> {
    let device = std::fs::metadata(dir)?.dev();
    let path = format!("/sys/dev/block/{}:{}/stat", rustix::fs::major(device), rustix::fs::minor(device));
    let stat = read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    let sectors = stat.split_whitespace().nth(6).context("a device without figures")?;
    Ok(number(sectors)? * SECTOR_BYTES)
}

/// The load averages, as the system writes them.
pub(crate) fn load_average() -> String {
    let text = read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').take(3).collect::<Vec<_>>().join(" ")
}

#[expect(clippy::cast_precision_loss, reason = "figures for people")]
pub(crate) fn as_f64(number: u64) -> f64 {
    number as f64
}
