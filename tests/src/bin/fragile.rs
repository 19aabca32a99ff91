//! A gateway with a bug: the shard that refuses a token panics in the middle of its turn. For the
//! end-to-end tests.

use std::fmt;
use std::path::Path;
use std::process::ExitCode;

use ringpost_engine::config::Config;
use ringpost_engine::{launch, start};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

fn main() -> ExitCode {
    let path = std::env::args_os().next_back().expect("fragile CONFIG");
    tracing::subscriber::set_global_default(Trap).expect("nobody else sets one");
    let config = Config::load(Path::new(&path)).expect("a good configuration");
    let ended = start::run(config, None, launch::start_shards, |serving| {
        println!("listening on {}, admin on http://{}", serving.listen, serving.admin_listen);
    });
    match ended {
        Ok(_) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}\nfix: {}", error.fix());
            ExitCode::from(error.exit_code())
        }
    }
}

/// Hears what the gateway logs, and panics where it refuses a token: on the shard's thread.
struct Trap;

impl Subscriber for Trap {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn event(&self, event: &Event<'_>) {
        event.record(&mut Message);
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

struct Message;

impl Visit for Message {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let says = field.name() == "message" && format!("{value:?}") == "token refused";
        assert!(!says, "the bug of this gateway");
    }
}
