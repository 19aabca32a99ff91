//! Writes the inputs that the corpora began with: one for each way through a target that the fuzzer
//! would take long to find. The same each time, but for the randomness in a ClientHello.
//!
//! ```text
//! cargo run --manifest-path tests/fuzz/Cargo.toml --example seeds -- tests/fuzz/corpus
//! ```

use std::io;
use std::path::Path;

use ringpost_fuzz::seeds;

fn main() -> io::Result<()> {
    let Some(directory) = std::env::args_os().nth(1) else {
        return Err(io::Error::other("usage: seeds DIRECTORY"));
    };
    for (target, check, inputs) in seeds::all() {
        let directory = Path::new(&directory).join(target);
        std::fs::create_dir_all(&directory)?;
        for (name, input) in inputs {
            println!("{target}: {name}");
            check(&input);
            std::fs::write(directory.join(format!("seed-{name}")), input)?;
        }
    }
    Ok(())
}
