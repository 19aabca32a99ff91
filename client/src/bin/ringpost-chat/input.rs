//! Where the lines come from.

use std::path::Path;
use std::vec::IntoIter;

use anyhow::Context;
use tokio::io::{AsyncBufReadExt, BufReader, Lines, Stdin};

pub(crate) enum Input {
    Terminal(Lines<BufReader<Stdin>>),
    Script(IntoIter<String>),
}

impl Input {
    pub(crate) fn open(script: Option<&Path>) -> anyhow::Result<Self> {
        let Some(path) = script else {
            return Ok(Self::Terminal(BufReader::new(tokio::io::stdin()).lines()));
        };
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("cannot read {}", path.display()))?;
        let lines: Vec<String> = text.lines().map(str::to_owned).collect();
        Ok(Self::Script(lines.into_iter()))
    }

    /// Cancelling loses nothing.
    pub(crate) async fn next(&mut self) -> anyhow::Result<Option<String>> {
        match self {
            Self::Terminal(lines) => Ok(lines.next_line().await?),
            Self::Script(lines) => Ok(lines.next()),
        }
    }
}
