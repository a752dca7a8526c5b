//! Any bytes as a configuration file.

use std::io;
use std::path::Path;

use super::environment::Environment;
use super::parse_bytes;

pub(crate) fn configuration(bytes: &[u8]) {
    let Err(faults) = parse_bytes(bytes, "h.toml", &Nowhere) else { return };
    let text = String::from_utf8_lossy(bytes);
    let lines = text.split('\n').count();
    assert!(!faults.0.is_empty(), "what is refused has a fault");
    for fault in &faults.0 {
        let position = fault.position.expect("what was read has positions");
        assert!((1..=lines).contains(&position.line), "{fault}");
        assert!(!fault.to_string().contains('\n'), "{fault:?}");
    }
}

/// A machine without files or variables.
struct Nowhere;

impl Environment for Nowhere {
    fn host_name(&self) -> String {
        "gw".to_owned()
    }

    fn variable(&self, _name: &str) -> Option<String> {
        None
    }

    fn look(&self, _path: &Path) -> io::Result<()> {
        Err(io::ErrorKind::NotFound.into())
    }

    fn read(&self, _path: &Path) -> io::Result<Vec<u8>> {
        Err(io::ErrorKind::NotFound.into())
    }
}
