//! What the HTTP interfaces of the control thread have in common: a bounded number of connections,
//! each with HTTP/1 for a bounded time.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use hyper::rt::{Read, Write};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioTimer;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tracing::debug;

/// Of one interface.
pub(super) struct Bounds {
    /// For the log.
    pub(super) interface: &'static str,
    /// At a time; more wait to be accepted.
    pub(super) connections_max: usize,
    /// Longest life of a connection.
    pub(super) connection_max: Duration,
    /// Longest wait for a request.
    pub(super) idle_max: Duration,
}

/// Serves as long as the gateway runs; `serve_connection` on a task of its own for each.
pub(super) async fn serve<F: Future<Output = ()> + 'static>(
    listener: TcpListener,
    bounds: &'static Bounds,
    serve_connection: impl Fn(TcpStream, SocketAddr) -> F,
) {
    let permits = Arc::new(Semaphore::new(bounds.connections_max));
    loop {
        let permit =
            Arc::clone(&permits).acquire_owned().await.expect("the semaphore is never closed");
        match listener.accept().await {
            Ok((stream, peer)) => {
                let serving = serve_connection(stream, peer);
                tokio::task::spawn_local(async move {
                    serving.await;
                    drop(permit);
                });
            }
            Err(error) => {
                // No descriptor left, usually: the next try may find one.
                debug!("accept of the {} interface: {error}", bounds.interface);
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Requests of one connection, one after the other.
pub(super) async fn converse<F: Future<Output = Response<Full<Bytes>>>>(
    stream: impl Read + Write + Unpin,
    bounds: &'static Bounds,
    respond: impl Fn(Request<Incoming>) -> F,
) {
    let service = service_fn(|request| {
        let response = respond(request);
        async move { Ok::<_, Infallible>(response.await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(bounds.idle_max)
        .max_headers(64)
        .serve_connection(stream, service);
    match timeout(bounds.connection_max, connection).await {
        Ok(Ok(())) | Err(_) => {}
        Ok(Err(error)) => debug!("connection of the {} interface: {error}", bounds.interface),
    }
}

pub(super) fn reply(status: StatusCode, kind: &'static str, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
