//! The admin endpoint: `/metrics`, `/healthz`, `/readyz` over HTTP/1, for machines on a private
//! network. Requests, connections and waiting times are bounded.

use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{ALLOW, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio::net::TcpListener;

use super::http::{self, Bounds, reply};
use super::{Phase, State, reload};
use crate::metrics::{ProcessMetrics, expose_gauge};

pub(super) fn listen(listener: std::net::TcpListener) -> std::io::Result<TcpListener> {
    listener.set_nonblocking(true)?;
    TcpListener::from_std(listener)
}

pub(super) async fn serve(listener: TcpListener, state: Rc<State>) {
    let serve_connection = |stream, _| {
        let state = Rc::clone(&state);
        async move {
            let answer = |request| {
                let state = Rc::clone(&state);
                async move { respond(&state, &request).await }
            };
            http::converse(TokioIo::new(stream), &BOUNDS, answer).await;
        }
    };
    http::serve(listener, &BOUNDS, serve_connection).await;
}

async fn respond(state: &State, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    let path = request.uri().path();
    if !matches!(path, "/metrics" | "/healthz" | "/readyz") {
        return text(StatusCode::NOT_FOUND, "try /metrics, /healthz or /readyz\n".to_owned());
    }
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let mut refusal = text(StatusCode::METHOD_NOT_ALLOWED, "GET only\n".to_owned());
        refusal.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return refusal;
    }
    match path {
        "/metrics" => metrics(state).await,
        "/healthz" => health(state),
        _ => readiness(state),
    }
}

fn health(state: &State) -> Response<Full<Bytes>> {
    let body = json!({
        "status": "alive",
        "version": env!("CARGO_PKG_VERSION"),
        "uptime_s": state.started.elapsed().as_secs(),
    });
    reply(StatusCode::OK, "application/json", body.to_string())
}

fn readiness(state: &State) -> Response<Full<Bytes>> {
    let reopening = state.shards_reopening();
    let (status, word) = match state.phase.get() {
        Phase::Starting => (StatusCode::SERVICE_UNAVAILABLE, "starting"),
        Phase::Serving if !reopening.is_empty() => (StatusCode::SERVICE_UNAVAILABLE, "reopening"),
        Phase::Serving => (StatusCode::OK, "ready"),
        Phase::Draining => (StatusCode::SERVICE_UNAVAILABLE, "draining"),
    };
    let mut body = json!({
        "status": word,
        "shards": state.shards,
        "shards_ready": state.shards_ready.get().saturating_sub(reopening.len()),
    });
    if !reopening.is_empty() {
        body["reason"] = "a store failed and is being opened again; see the log".into();
        body["shards_reopening"] = reopening.into();
    }
    reply(status, "application/json", body.to_string())
}

async fn metrics(state: &State) -> Response<Full<Bytes>> {
    let (sum, silent) = state.shard_metrics().await;
    let mut body = String::with_capacity(16 * 1024);
    sum.expose(&mut body);
    expose_gauge(&mut body, "ringpost_shards", "Shards of this process.", state.shards as u64);
    let help = "Shards that did not answer and are not in these numbers.";
    expose_gauge(&mut body, "ringpost_shards_silent", help, silent);
    state.audit.expose(&mut body);
    if let Some(directory) = &state.directory {
        directory.metrics().expose(&mut body);
    }
    state.metrics.expose(&mut body, reload::unix_ms());
    ProcessMetrics::read().expose(&mut body);
    reply(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", body)
}

fn text(status: StatusCode, body: String) -> Response<Full<Bytes>> {
    reply(status, "text/plain; charset=utf-8", body)
}

static BOUNDS: Bounds = Bounds {
    interface: "admin",
    connections_max: 32,
    connection_max: Duration::from_secs(600),
    idle_max: Duration::from_secs(60),
};
