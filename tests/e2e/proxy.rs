//! Behind a balancer: its header names the client, and without one nobody comes in.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};

use crate::support::gateway::{Gateway, Settings};
use crate::support::raw::{Raw, tls_config};
use crate::support::{PATIENCE, wait_until};

fn behind_balancers(trusted: &'static str) -> Gateway {
    Gateway::start(Settings {
        listener: trusted,
        limits: "address_connections_max = 1, handshake_ms_max = 2000",
        ..Settings::default()
    })
}

/// TCP over IPv4, from this client to 10.0.0.1.
fn header(client: [u8; 4]) -> Vec<u8> {
    let mut header = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x0c".to_vec();
    header.extend(client);
    header.extend([10, 0, 0, 1, 0x1f, 0x90, 0x1d, 0x13]);
    header
}

fn refused(gateway: &Gateway, reason: &str) -> f64 {
    gateway.metric(&format!("ringpost_connections_refused_total{{reason=\"{reason}\"}}"))
}

const LOOPBACK: &str = "proxy_protocol = true\nproxy_trusted = [\"127.0.0.0/8\"]";

#[test]
fn limits_and_logs_are_of_the_client() {
    let gateway = behind_balancers(LOOPBACK);
    let config = tls_config(&gateway, &[b"ringpost/1"]);
    let connect = |client| Raw::connect_behind(&gateway, &config, &header(client));
    let mut one = connect([192, 0, 2, 7]).unwrap();
    one.hello(&gateway.keys.token("alice", "phone"), "phone");
    one.expect_welcome();
    assert!(connect([192, 0, 2, 7]).is_err(), "it has one");
    assert_eq!(refused(&gateway, "address_connections"), 1.0);
    let mut other = connect([192, 0, 2, 8]).unwrap();
    other.hello("no token", "phone");
    wait_until("the log names the client", || {
        let log = gateway.log();
        let names = |line: &str| line.contains("192.0.2.8") && line.contains("connection refused");
        log.lines().any(names).then_some(())
    });
}

#[test]
fn what_is_no_header_is_refused() {
    let gateway = behind_balancers(LOOPBACK);
    let config = tls_config(&gateway, &[b"ringpost/1"]);
    assert!(Raw::connect_with(&gateway, &config).is_err(), "no header");
    let v1 = b"PROXY TCP4 192.0.2.7 10.0.0.1 8080 7443\r\n";
    assert!(Raw::connect_behind(&gateway, &config, v1).is_err(), "version 1");
    let mut udp = header([192, 0, 2, 7]);
    udp[13] = 0x12;
    assert!(Raw::connect_behind(&gateway, &config, &udp).is_err(), "not TCP");
    assert_eq!(refused(&gateway, "proxy_header"), 3.0);

    let mut cut = TcpStream::connect_timeout(&gateway.address(), PATIENCE).unwrap();
    cut.write_all(&header([192, 0, 2, 7])[..20]).unwrap();
    cut.shutdown(Shutdown::Write).unwrap();
    wait_until("the cut one is refused", || {
        (refused(&gateway, "proxy_header") == 4.0).then_some(())
    });
    let log = gateway.log();
    for words in ["no PROXY header", "version 1", "not TCP over", "ended within the PROXY header"] {
        assert!(log.contains(words), "no {words:?} in the log");
    }

    // One that does not go on has the time of a handshake.
    let mut slow = TcpStream::connect_timeout(&gateway.address(), PATIENCE).unwrap();
    slow.set_read_timeout(Some(PATIENCE)).unwrap();
    slow.write_all(&header([192, 0, 2, 7])[..20]).unwrap();
    let mut rest = Vec::new();
    let _ = slow.read_to_end(&mut rest); // in order, or reset
    assert_eq!(gateway.metric("ringpost_hello_refused_total{code=\"timeout\"}"), 1.0);
    Raw::connect_behind(&gateway, &config, &header([192, 0, 2, 7])).unwrap();
}

#[test]
fn only_balancers_may_connect() {
    let gateway = behind_balancers("proxy_protocol = true\nproxy_trusted = [\"192.0.2.0/24\"]");
    let config = tls_config(&gateway, &[b"ringpost/1"]);
    assert!(Raw::connect_behind(&gateway, &config, &header([192, 0, 2, 7])).is_err());
    assert!(refused(&gateway, "proxy_untrusted") >= 1.0);
}
