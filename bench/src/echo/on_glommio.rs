//! Echo on glommio: a task and a buffer per connection.

use std::io;

use futures_lite::{AsyncReadExt, AsyncWriteExt};
use glommio::net::{TcpListener, TcpStream};
use glommio::{LocalExecutorBuilder, Placement};

use super::{ANY_PORT, Announce, BUFFER_BYTES};

pub(super) fn serve(announce: Announce) -> io::Result<()> {
    let executor = LocalExecutorBuilder::new(Placement::Unbound)
        .make()
        .map_err(|error| io::Error::other(error.to_string()))?;
    executor.run(async {
        let listener = TcpListener::bind(ANY_PORT)?;
        announce(listener.local_addr()?);
        loop {
            let stream = listener.accept().await?;
            stream.set_nodelay(true)?;
            // A connection that breaks ends its own task and nothing else.
            glommio::spawn_local(async move { echo(stream).await.unwrap_or_default() }).detach();
        }
    })
}

async fn echo(mut stream: TcpStream) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let length = stream.read(&mut buffer).await?;
        if length == 0 {
            return Ok(());
        }
        stream.write_all(&buffer[..length]).await?;
    }
}
