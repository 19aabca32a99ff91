//! A TCP path that breaks after a chosen byte. Nothing but the standard library.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    ToServer,
    ToClient,
}

/// Between clients and one server. Ends with the process.
pub(crate) struct TcpRelay {
    address: SocketAddr,
    cut: Arc<Mutex<Option<Cut>>>,
}

#[derive(Clone, Copy, Debug)]
struct Cut {
    way: Way,
    /// Bytes that still pass.
    left_bytes: usize,
}

impl TcpRelay {
    /// On a free port of 127.0.0.1.
    pub(crate) fn start(server: SocketAddr) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port is free");
        let address = listener.local_addr().expect("it is bound");
        let cut = Arc::new(Mutex::new(None));
        let armed = Arc::clone(&cut);
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                // A server that is away refuses; so do we.
                let Ok(server) = TcpStream::connect(server) else { continue };
                if let Err(error) = join(&client, &server, &armed) {
                    panic!("relay: {error}");
                }
            }
        });
        Self { address, cut }
    }

    /// Where clients connect to.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// After so many more bytes this way, the connection that carries them breaks in both directions.
    /// Later connections are left alone.
    pub(crate) fn cut_after(&self, way: Way, bytes: usize) {
        *self.cut.lock().expect("no thread panics") = Some(Cut { way, left_bytes: bytes });
    }

    /// Takes back a cut that has not happened; false when it has.
    pub(crate) fn disarm(&self) -> bool {
        self.cut.lock().expect("no thread panics").take().is_some()
    }
}

fn join(client: &TcpStream, server: &TcpStream, cut: &Arc<Mutex<Option<Cut>>>) -> io::Result<()> {
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    for (way, from, to) in [(Way::ToServer, client, server), (Way::ToClient, server, client)] {
        let (from, to, cut) = (from.try_clone()?, to.try_clone()?, Arc::clone(cut));
        thread::spawn(move || {
            // Either error is the end of the connection.
            let _ = pump(way, &from, &to, &cut);
            let _ = from.shutdown(Shutdown::Both);
            let _ = to.shutdown(Shutdown::Both);
        });
    }
    Ok(())
}

/// Gives up where the cut is.
fn pump(
    way: Way,
    mut from: &TcpStream,
    mut to: &TcpStream,
    cut: &Mutex<Option<Cut>>,
) -> io::Result<()> {
    let mut data = [0; 16 * 1024];
    loop {
        let length = from.read(&mut data)?;
        if length == 0 {
            return Ok(());
        }
        let passing = {
            let mut armed = cut.lock().expect("no thread panics");
            match armed.as_mut().filter(|cut| cut.way == way) {
                Some(cut) if cut.left_bytes <= length => {
                    let left_bytes = cut.left_bytes;
                    *armed = None;
                    to.write_all(&data[..left_bytes])?;
                    return Ok(());
                }
                Some(cut) => {
                    cut.left_bytes -= length;
                    length
                }
                None => length,
            }
        };
        to.write_all(&data[..passing])?;
    }
}
