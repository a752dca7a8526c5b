//! `holdfast serial list`: the ports of this machine.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Access, access};

use crate::status::text::shown;

/// Names of ports, without their number.
const NAMES: [&str; 5] = ["ttyUSB", "ttyACM", "ttyAMA", "ttyS", "ttymxc"];
/// Names that stay the same.
const BY_ID: &str = "/dev/serial/by-id";

/// A port.
#[derive(Debug, PartialEq, Eq)]
struct Found {
    path: PathBuf,
    /// Names that lead to it.
    links: Vec<PathBuf>,
}

/// Writes the ports to `out`.
///
/// # Errors
/// If `out` fails.
pub(super) fn list(out: &mut impl Write) -> anyhow::Result<()> {
    let found = find(Path::new("/dev"), Path::new("/sys/class/tty"), Path::new(BY_ID));
    if found.is_empty() {
        writeln!(out, "no serial port is there: plug one in; in a container, pass it on with --device")?;
    }
    for Found { path, links } in found {
        writeln!(out, "{}  {}", shown(&path.to_string_lossy()), may_open(&path))?;
        for link in links {
            writeln!(out, "    {}", shown(&link.to_string_lossy()))?;
        }
    }
    Ok(())
}

/// The ports in `dev` that have hardware, as `sys` says, with the links to them in `by_id`.
fn find(dev: &Path, sys: &Path, by_id: &Path) -> Vec<Found> {
    let mut found: Vec<Found> = entries(dev)
        .filter(|path| is_port(path, sys))
        .map(|path| Found { path, links: Vec::new() })
        .collect();
    found.sort_by(|one, other| one.path.cmp(&other.path));
    for link in entries(by_id) {
        let leads_to = fs::canonicalize(&link).ok();
        if let Some(of) =
            found.iter_mut().find(|of| leads_to.is_some() && fs::canonicalize(&of.path).ok() == leads_to)
        {
            of.links.push(link);
        }
    }
    found
}

fn entries(folder: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    fs::read_dir(folder).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path()))
}

fn is_port(path: &Path, sys: &Path) -> bool {
    let Some(name) = path.file_name().and_then(|name| name.to_str()) else { return false };
    let is_name = NAMES.iter().any(|start| {
        name.strip_prefix(start)
            .is_some_and(|number| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()))
    });
    // Of the ports of a PC there are device files for more than there are; the kernel knows their type: 0 is none.
    let is_there = fs::read_to_string(sys.join(name).join("type")).map_or(true, |of| of.trim() != "0");
    is_name && is_there
}

/// Whether we may open it, and whose it is.
fn may_open(path: &Path) -> String {
    let Ok(metadata) = fs::metadata(path) else { return "gone".to_owned() };
    let mode = metadata.permissions().mode() & 0o777;
    let may = access(path, Access::READ_OK | Access::WRITE_OK).is_ok();
    let group = group(metadata.gid());
    if may {
        format!("you may open it (group {group}, mode {mode:03o})")
    } else {
        format!(
            "you may not open it: it is for the group {group} (mode {mode:03o}); `sudo adduser $USER {group}`, and log in again"
        )
    }
}

fn group(gid: u32) -> String {
    let groups = fs::read_to_string("/etc/group").unwrap_or_default();
    let named = groups.lines().find_map(|line| {
        let mut parts = line.split(':');
        let name = parts.next()?;
        (parts.nth(1)?.parse() == Ok(gid)).then(|| name.to_owned())
    });
    named.unwrap_or_else(|| gid.to_string())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn ports_are_found_with_their_lasting_names_and_without_those_that_have_no_hardware() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for folder in ["dev", "sys/ttyS0", "sys/ttyS1", "by-id"] {
            fs::create_dir_all(at(folder)).unwrap();
        }
        for name in ["ttyUSB0", "ttyS0", "ttyS1", "ttyS", "tty1", "ttyUSBx", "null"] {
            fs::write(at("dev").join(name), "").unwrap();
        }
        fs::write(at("sys/ttyS0/type"), "4\n").unwrap();
        fs::write(at("sys/ttyS1/type"), "0\n").unwrap();
        symlink("../dev/ttyUSB0", at("by-id/usb-node-0")).unwrap();
        let found = find(&at("dev"), &at("sys"), &at("by-id"));
        let expected = [("dev/ttyS0", vec![]), ("dev/ttyUSB0", vec![at("by-id/usb-node-0")])];
        assert_eq!(found, expected.map(|(path, links)| Found { path: at(path), links }));
    }
}
