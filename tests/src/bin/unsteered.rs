//! A gateway to whose shards nothing steers datagrams, so that most of them come to a wrong one and
//! have to be passed on. For the end-to-end tests; no configuration of the shipped binary says this.

use std::path::Path;

use anyhow::{Context, bail};
use ringpost_engine::config::Config;
use ringpost_engine::{launch, start};

fn main() -> anyhow::Result<()> {
    let Some(path) = std::env::args_os().next_back() else { bail!("unsteered CONFIG") };
    let mut config = Config::load(Path::new(&path)).context("the configuration")?;
    config.quic.steering = None;
    start::run(config, None, launch::start_shards, |serving| {
        println!("listening on {}, admin on http://{}", serving.listen, serving.admin_listen);
    })?;
    Ok(())
}
