//! Echo on tokio, on the current thread: a task per connection, no buffer while it waits.

use std::io;

use tokio::net::{TcpListener, TcpStream};

use super::{ANY_PORT, Announce, BUFFER_BYTES};

pub(super) fn serve(announce: Announce) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    runtime.block_on(async {
        let listener = TcpListener::bind(ANY_PORT).await?;
        announce(listener.local_addr()?);
        loop {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            tokio::spawn(echo(stream));
        }
    })
}

async fn echo(stream: TcpStream) -> io::Result<()> {
    loop {
        stream.readable().await?;
        if !answer(&stream)? {
            return Ok(());
        }
    }
}

/// False: the client has closed. The buffer lives no longer than this call, so the task is small.
fn answer(stream: &TcpStream) -> io::Result<bool> {
    let mut buffer = [0; BUFFER_BYTES];
    let length = match stream.try_read(&mut buffer) {
        Ok(0) => return Ok(false),
        Ok(length) => length,
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(true),
        Err(error) => return Err(error),
    };
    // The client waits for this answer, so there is room for it.
    if stream.try_write(&buffer[..length])? == length {
        Ok(true)
    } else {
        Err(io::ErrorKind::WriteZero.into())
    }
}
