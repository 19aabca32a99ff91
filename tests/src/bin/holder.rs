//! A parent that opens the sockets of a gateway, keeps them open, and starts it again whenever it ends,
//! as systemd does with a socket unit. It ends, and ends the gateway, when its standard input does.
//! For the end-to-end tests.

use std::io::{self, Read};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context, ensure};
use rustix::net::{self, AddressFamily, SocketFlags, SocketType, sockopt};

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [address, shards, binary, config] = &arguments[..] else {
        anyhow::bail!("holder IP SHARDS BINARY CONFIG");
    };
    let sockets = open(address.parse()?, shards.parse()?).context("the sockets")?;
    for (socket, number) in sockets.iter().zip(3..) {
        ensure!(socket.as_raw_fd() == number, "descriptors were open before");
    }
    let (ended, end) = mpsc::channel();
    std::thread::spawn(move || {
        let _ = io::stdin().read_to_end(&mut Vec::new());
        let _ = ended.send(());
    });
    loop {
        let mut gateway = Command::new("sh")
            .args(["-c", r#"LISTEN_PID=$$ exec "$0" serve --config "$1""#, binary, config])
            .env("LISTEN_FDS", sockets.len().to_string())
            .stdin(Stdio::null())
            .spawn()?;
        while gateway.try_wait()?.is_none() {
            if end.recv_timeout(Duration::from_millis(5)).is_ok() {
                gateway.kill()?;
                gateway.wait()?;
                return Ok(());
            }
        }
    }
}

/// First those for TCP, then those for UDP, which stay open in programs that this one starts.
fn open(ip: IpAddr, shards: u16) -> io::Result<Vec<OwnedFd>> {
    let mut address = SocketAddr::new(ip, 0);
    let mut sockets = Vec::new();
    for kind in [SocketType::STREAM, SocketType::DGRAM] {
        for _ in 0..shards {
            let family = if ip.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
            let socket = net::socket_with(family, kind, SocketFlags::empty(), None)?;
            sockopt::set_socket_reuseport(&socket, true)?;
            net::bind(&socket, &address)?;
            if kind == SocketType::STREAM {
                net::listen(&socket, 128)?;
            }
            address = net::getsockname(&socket)?.try_into()?;
            sockets.push(socket);
        }
    }
    Ok(sockets)
}
