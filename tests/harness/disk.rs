//! A disk of its own for one agent: small, so that it can be filled, or one that can be frozen. Needs root.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tempfile::TempDir;

/// Written at a time to fill a disk.
const BLOCK: usize = 64 << 10;

/// A file system, mounted until this is dropped.
#[derive(Debug)]
pub struct Disk {
    mounted_at: PathBuf,
    /// The image behind it.
    _image: Option<TempDir>,
    is_frozen: bool,
}

impl Disk {
    /// A small disk at `folder`, which is made; `None` if we may not mount.
    ///
    /// # Panics
    /// If the folder cannot be made.
    #[must_use]
    pub fn small(folder: &Path, mib: u32) -> Option<Self> {
        std::fs::create_dir_all(folder).unwrap();
        let size = format!("size={mib}m");
        run("mount", &["-t", "tmpfs", "-o", &size, "tmpfs", text(folder)]).then(|| Self::at(folder, None))
    }

    /// A disk at `folder` that can be frozen; `None` if we may not mount, or there are no loop devices.
    ///
    /// # Panics
    /// If the folder cannot be made.
    #[must_use]
    pub fn freezable(folder: &Path) -> Option<Self> {
        std::fs::create_dir_all(folder).unwrap();
        let image = tempfile::tempdir().unwrap();
        let file = image.path().join("image");
        std::fs::File::create(&file).unwrap().set_len(64 << 20).unwrap();
        let is_made = run("mkfs.ext4", &["-q", "-F", text(&file)])
            && run("mount", &["-o", "loop", text(&file), text(folder)]);
        is_made.then(|| Self::at(folder, Some(image)))
    }

    fn at(folder: &Path, image: Option<TempDir>) -> Self {
        Self { mounted_at: folder.to_owned(), _image: image, is_frozen: false }
    }

    /// Fills it to the last byte.
    ///
    /// # Panics
    /// If it fails for another reason than that it is full.
    pub fn fill(&self) {
        use std::io::Write;
        let mut file = std::fs::File::create(self.ballast()).unwrap();
        loop {
            match file.write_all(&vec![7; BLOCK]) {
                Ok(()) => {}
                Err(error) if error.kind() == std::io::ErrorKind::StorageFull => return,
                Err(error) => panic!("cannot fill the disk: {error}"),
            }
        }
    }

    /// Makes room again.
    pub fn free(&self) {
        // It was not filled.
        drop(std::fs::remove_file(self.ballast()));
    }

    /// From now on every write hangs in the kernel.
    ///
    /// # Panics
    /// If it cannot be frozen.
    pub fn freeze(&mut self) {
        assert!(run("fsfreeze", &["-f", text(&self.mounted_at)]), "the disk cannot be frozen");
        self.is_frozen = true;
    }

    /// Writes go on.
    ///
    /// # Panics
    /// If they cannot.
    pub fn thaw(&mut self) {
        if std::mem::take(&mut self.is_frozen) {
            assert!(run("fsfreeze", &["-u", text(&self.mounted_at)]), "the disk cannot be thawed");
        }
    }

    fn ballast(&self) -> PathBuf {
        self.mounted_at.join("ballast")
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if self.is_frozen {
            run("fsfreeze", &["-u", text(&self.mounted_at)]);
        }
        // Lazily: the agent may still run.
        run("umount", &["-l", text(&self.mounted_at)]);
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("temporary folders have plain names")
}

/// Whether a program of the system did it.
fn run(program: &str, arguments: &[&str]) -> bool {
    let mut command = Command::new(program);
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    command
        .args(arguments)
        .env("PATH", path)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}
