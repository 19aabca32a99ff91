//! Numbers that a gateway tells: its Prometheus page over plain HTTP.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::report::ServerUse;

/// Reads CPU time and memory from a Prometheus page.
pub fn read_metrics(admin: SocketAddr, path: &str) -> Result<ServerUse> {
    let page = http_get(admin, path)?;
    let value = |name: &str| {
        metric(&page, name).with_context(|| format!("no {name} at http://{admin}{path}"))
    };
    let rss_bytes = value("process_resident_memory_bytes")?;
    #[expect(clippy::cast_possible_truncation, reason = "a size: not negative, whole, below 2^53")]
    let bytes = |value: f64| value as u64;
    Ok(ServerUse {
        cpu_seconds: value("process_cpu_seconds_total")?,
        rss_bytes: bytes(rss_bytes),
        index_bytes: metric(&page, "ringpost_store_index_bytes").map(bytes),
        queued_records: metric(&page, "ringpost_queued_records").map(bytes),
    })
}

/// One number of a Prometheus page, added up over its labels.
pub fn read_counter(admin: SocketAddr, path: &str, name: &str) -> Option<u64> {
    let page = http_get(admin, path).ok()?;
    #[expect(clippy::cast_possible_truncation, reason = "a count: not negative, whole, below 2^53")]
    metric(&page, name).map(|value| value as u64)
}

/// Splits `http://HOST:PORT/PATH`; the path defaults to `/metrics`.
pub fn parse_metrics_url(url: &str) -> Result<(SocketAddr, String)> {
    let rest = url.strip_prefix("http://").context("--metrics must start with http://")?;
    let (address, path) = rest.split_once('/').unwrap_or((rest, "metrics"));
    let address = resolve(address)?;
    Ok((address, format!("/{path}")))
}

/// The first address of `host:port`.
pub fn resolve(text: &str) -> Result<SocketAddr> {
    use std::net::ToSocketAddrs;
    text.to_socket_addrs()
        .with_context(|| format!("{text:?} is not host:port"))?
        .next()
        .with_context(|| format!("{text:?} has no address"))
}

/// One GET over HTTP/1.1; the body of a 200.
pub fn http_get(server: SocketAddr, path: &str) -> Result<String> {
    let mut stream = TcpStream::connect_timeout(&server, HTTP_TIME_MAX)?;
    stream.set_read_timeout(Some(HTTP_TIME_MAX))?;
    stream.set_write_timeout(Some(HTTP_TIME_MAX))?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: {server}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    stream.take(HTTP_BYTES_MAX).read_to_end(&mut answer)?;
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer.split_once("\r\n\r\n").context("no HTTP answer")?;
    ensure!(head.split(' ').nth(1) == Some("200"), "{}", head.lines().next().unwrap_or_default());
    Ok(body.to_owned())
}

/// The sum of all samples of one metric, whatever their labels. Chunk sizes of a chunked body are
/// lines of their own and do no harm here.
fn metric(page: &str, name: &str) -> Option<f64> {
    let samples: Vec<f64> = page
        .lines()
        .filter_map(|line| {
            let rest = line.strip_prefix(name)?;
            let rest = match rest.strip_prefix('{') {
                Some(labels) => labels.split_once('}')?.1,
                None => rest,
            };
            rest.strip_prefix(' ')?.split(' ').next()?.trim().parse().ok()
        })
        .collect();
    (!samples.is_empty()).then(|| samples.iter().sum())
}

const HTTP_TIME_MAX: Duration = Duration::from_secs(5);
const HTTP_BYTES_MAX: u64 = 16 * 1024 * 1024;

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::thread;

    use super::*;

    #[test]
    fn metrics_are_summed_over_labels_and_not_mixed_up() {
        let page = "# HELP process_cpu_seconds_total x\nprocess_cpu_seconds_total 1.5\n\
                    process_cpu_seconds_total_more 9\nsockets{shard=\"0\"} 2\nsockets{shard=\"1\"} 3\n";
        assert_eq!(metric(page, "process_cpu_seconds_total"), Some(1.5));
        assert_eq!(metric(page, "sockets"), Some(5.0));
        assert_eq!(metric(page, "absent"), None);
    }

    #[test]
    fn metrics_urls_are_split() {
        let (address, path) = parse_metrics_url("http://127.0.0.1:7480/metrics").unwrap();
        assert_eq!((address.port(), path.as_str()), (7480, "/metrics"));
        assert_eq!(parse_metrics_url("http://127.0.0.1:1").unwrap().1, "/metrics");
        assert!(parse_metrics_url("https://127.0.0.1:1").is_err());
    }

    #[test]
    fn metrics_are_read_over_http() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let server = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 512];
            let length = stream.read(&mut request).unwrap();
            assert!(request[..length].starts_with(b"GET /metrics HTTP/1.1\r\n"));
            let body = "process_cpu_seconds_total 2.25\nprocess_resident_memory_bytes 4096\n";
            write!(stream, "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len())
                .unwrap();
        });
        let server_use = read_metrics(address, "/metrics").unwrap();
        let wanted = ServerUse { cpu_seconds: 2.25, rss_bytes: 4096, ..ServerUse::default() };
        assert_eq!(server_use, wanted);
        server.join().unwrap();
    }
}
