//! `ringpost store`: what a data directory holds, whether it is whole, and a smaller copy of it.

use std::io::{self, Write};
use std::path::PathBuf;

use clap::Subcommand;
use ringpost_storage::OpenFault;

use crate::data_dir::DataDirFault;

mod compact;
mod fields;
mod inspect;
mod scan;
mod target;
mod verify;

pub use compact::CompactArgs;
pub use inspect::InspectArgs;
pub use verify::VerifyArgs;

/// Look into the stores of a gateway that is not running.
///
/// DIR is the data_dir of the configuration, or a copy of it. Nothing but `compact` changes a file.
#[derive(Debug, Subcommand)]
pub enum StoreCommand {
    /// Show generations, shards, segments and mailboxes: what is live, what is dead, what is damaged
    #[command(after_long_help = inspect::HELP)]
    Inspect(InspectArgs),
    /// Read every byte and check every checksum; exit code 0 clean, 1 damaged, 2 not examined
    #[command(after_long_help = verify::HELP)]
    Verify(VerifyArgs),
    /// Rewrite the stores without what is dead: the space is free at once, not segment by segment
    #[command(after_long_help = compact::HELP)]
    Compact(CompactArgs),
}

/// Why a command did not do its work.
#[derive(Debug, thiserror::Error)]
pub enum StoreToolFault {
    #[error(transparent)]
    DataDir(#[from] DataDirFault),
    #[error("{} is neither a data directory nor a storage shard's directory", .0.display())]
    NotAStore(PathBuf),
    #[error("cannot read {}: {error}", path.display())]
    Io { path: PathBuf, error: io::Error },
    #[error("{}: {fault}", path.display())]
    Open { path: PathBuf, fault: OpenFault },
    #[error("cannot write the output: {0}")]
    Output(io::Error),
}

impl StoreCommand {
    /// Runs the command; its output goes to standard output. Gives the exit code.
    pub fn run(&self) -> Result<u8, StoreToolFault> {
        let mut out = io::BufWriter::new(io::stdout().lock());
        let code = match self {
            Self::Inspect(args) => inspect::run(args, &mut out)?,
            Self::Verify(args) => verify::run(args, &mut out)?,
            Self::Compact(args) => compact::run(args, &mut out)?,
        };
        out.flush().map_err(StoreToolFault::Output)?;
        Ok(code)
    }
}

impl StoreToolFault {
    /// What to do about it.
    pub fn fix(&self) -> String {
        match self {
            Self::DataDir(DataDirFault::InUse(_)) => {
                "stop the gateway, or give a copy of its data directory".to_owned()
            }
            Self::DataDir(fault) => fault.fix(),
            Self::NotAStore(_) => {
                "give the data_dir of a configuration; it holds CURRENT and store/".to_owned()
            }
            Self::Io { .. } => "run it as the user that runs the gateway".to_owned(),
            Self::Open { .. } => "`ringpost store verify` says more".to_owned(),
            Self::Output(_) => "the reader of the output has gone".to_owned(),
        }
    }

    /// The command could not examine the store: never 1, which says that it is damaged.
    pub fn exit_code(&self) -> u8 {
        2
    }
}

/// One line of JSON.
fn json_line(out: &mut impl Write, value: &serde_json::Value) -> Result<(), StoreToolFault> {
    writeln!(out, "{value}").map_err(StoreToolFault::Output)
}

fn line(out: &mut impl Write, text: &str) -> Result<(), StoreToolFault> {
    writeln!(out, "{text}").map_err(StoreToolFault::Output)
}

fn mib(bytes: u64) -> String {
    let tenths = bytes.saturating_mul(10).div_ceil(1 << 20);
    format!("{}.{} MiB", tenths / 10, tenths % 10)
}
