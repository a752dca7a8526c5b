//! Writes the manual pages and the shell completions of all commands into a folder.
//!
//! ```sh
//! cargo run -p holdfast --example manual -- target/manual
//! ```
//!
//! They are made of what the program itself takes its arguments by, so they say what `--help` says. `scripts/dist` packs them.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::PathBuf;

use anyhow::Context;
use clap_complete::Shell;

/// What the arguments do not tell; it follows the page of the program as a whole.
const MORE: &str = r#".SH "EXIT STATUS"
.TP
\fB0\fR
Done
.TP
\fB1\fR
Failed at run time
.TP
\fB2\fR
Bad usage or configuration
.SH FILES
.TP
\fI/etc/holdfast/holdfast.toml\fR
The configuration; it explains all settings itself
.TP
\fI/var/lib/holdfast\fR
The store
.TP
\fI/run/holdfast/admin.sock\fR
Through which the commands speak to the agent that runs as a service
.SH "SEE ALSO"
\fBsystemctl\fR(1), \fBjournalctl\fR(1)
"#;

fn main() -> anyhow::Result<()> {
    let folder = PathBuf::from(std::env::args_os().nth(1).context("which folder? usage: manual FOLDER")?);
    let (pages, completions) = (folder.join("man1"), folder.join("completions"));
    for folder in [&pages, &completions] {
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    }
    clap_mangen::generate_to(holdfast::cli::description(), &pages)?;
    OpenOptions::new().append(true).open(pages.join("holdfast.1"))?.write_all(MORE.as_bytes())?;
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        clap_complete::generate_to(shell, &mut holdfast::cli::description(), "holdfast", &completions)?;
    }
    Ok(())
}
