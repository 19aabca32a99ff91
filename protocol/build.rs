//! Compiles the wire schema with `protox`, so that no `protoc` has to be installed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto/ringpost.proto");
    let descriptors = protox::compile(["proto/ringpost.proto"], ["proto"])?;
    // Envelopes decoded as `Bytes` share the memory of the frame instead of being copied.
    prost_build::Config::new().bytes(["."]).compile_fds(descriptors)?;
    Ok(())
}
