//! Public keys over HTTPS: `POST /v1/keys` publishes those of the device that the token names,
//! `GET /v1/keys/{user}` takes a bundle for each device of a user. `engine/openapi.json` describes it.
//!
//! It runs on the control thread, beside the shards. Connections, requests, sizes and times are bounded.

mod body;

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::header::{ALLOW, AUTHORIZATION, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use ringpost_protocol::id::{DeviceAddress, UserId};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tracing::debug;

use super::auth::{AuthFault, Claims};
use super::http::{self, Bounds, reply};
use super::{State, reload};
use crate::directory::{Answer, ControlPort, Handouts, Request as Wish};
use crate::limits::{REST_BODY_BYTES_MAX, REST_CONNECTIONS_MAX, REST_REQUEST_MS_MAX};

/// What the interface works with.
struct Interface {
    state: Rc<State>,
    directory: ControlPort,
    /// Users that each user has read.
    reads: RefCell<Handouts>,
}

/// Why a request is refused.
struct Refusal(StatusCode, &'static str);

/// Serves as long as the gateway runs.
pub(super) async fn serve(listener: TcpListener, state: Rc<State>, directory: ControlPort) {
    let interface = Rc::new(Interface { state, directory, reads: RefCell::default() });
    let serve_connection = |stream| serve_connection(stream, Rc::clone(&interface));
    http::serve(listener, &BOUNDS, serve_connection).await;
}

async fn serve_connection(stream: TcpStream, interface: Rc<Interface>) {
    // Of now: a reload may have brought another certificate.
    let Some(tls) = interface.state.settings.borrow().acceptor.for_https() else { return };
    let handshake = TlsAcceptor::from(tls).accept(stream);
    let stream = match timeout(HANDSHAKE_MAX, handshake).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return debug!("handshake of the key interface: {error}"),
        Err(_) => return,
    };
    let answer = |request| {
        let interface = Rc::clone(&interface);
        async move {
            let deadline = Duration::from_millis(REST_REQUEST_MS_MAX);
            let answer = match timeout(deadline, interface.answer(request)).await {
                Ok(answer) => answer,
                Err(_) => Err(Refusal(StatusCode::REQUEST_TIMEOUT, "the request took too long")),
            };
            answer.map_or_else(Refusal::into_response, |body| respond(StatusCode::OK, &body))
        }
    };
    http::converse(TokioIo::new(stream), &BOUNDS, answer).await;
}

impl Interface {
    async fn answer(&self, request: Request<Incoming>) -> Result<Value, Refusal> {
        let path = request.uri().path().to_owned();
        match (request.method(), path.strip_prefix("/v1/keys")) {
            (&Method::POST, Some("")) => {
                let claims = self.verify(&request)?;
                self.publish(claims, request).await
            }
            (&Method::GET, Some(rest)) if rest.len() > 1 && rest.starts_with('/') => {
                let claims = self.verify(&request)?;
                self.fetch(claims, &rest[1..]).await
            }
            (_, Some("")) => Err(Refusal(StatusCode::METHOD_NOT_ALLOWED, "POST only")),
            (_, Some(rest)) if rest.len() > 1 && rest.starts_with('/') => {
                Err(Refusal(StatusCode::METHOD_NOT_ALLOWED, "GET only"))
            }
            _ => Err(Refusal(StatusCode::NOT_FOUND, "try /v1/keys or /v1/keys/{user}")),
        }
    }

    /// As the Hello of a client.
    fn verify(&self, request: &Request<Incoming>) -> Result<Claims, Refusal> {
        let given = request.headers().get(AUTHORIZATION).and_then(|value| value.to_str().ok());
        let token = given.and_then(|value| value.strip_prefix("Bearer "));
        let unauthorized = |text| Refusal(StatusCode::UNAUTHORIZED, text);
        let token = token.ok_or_else(|| unauthorized("Authorization: Bearer TOKEN is missing"))?;
        let verifier = Arc::clone(&self.state.settings.borrow().verifier);
        verifier.verify(token.trim(), reload::unix_ms()).map_err(|fault| {
            debug!(%fault, "token refused");
            if fault == AuthFault::KeyUnknown {
                self.state.key_demand.raise();
            }
            match fault {
                AuthFault::Expired => unauthorized("the token has expired"),
                _ => unauthorized("the token is not valid"),
            }
        })
    }

    async fn publish(&self, claims: Claims, request: Request<Incoming>) -> Result<Value, Refusal> {
        let body = Limited::new(request.into_body(), REST_BODY_BYTES_MAX).collect().await;
        let too_large = Refusal(StatusCode::PAYLOAD_TOO_LARGE, "the body is too large");
        let body = body.map_err(|_| too_large)?.to_bytes();
        let keys =
            body::parse_keys(&body).map_err(|text| Refusal(StatusCode::BAD_REQUEST, text))?;
        let owner = DeviceAddress { user: claims.user, device: claims.device };
        match self.directory.ask(Wish::Publish { owner, keys }).await {
            Answer::Published { stock } => Ok(json!({ "one_time_keys": stock })),
            Answer::NoIdentity => {
                Err(Refusal(StatusCode::NOT_FOUND, "no identity key is published"))
            }
            Answer::StockFull => Err(Refusal(
                StatusCode::CONFLICT,
                "the stock of one-time keys, or the number of devices, is too large",
            )),
            _ => Err(BUSY),
        }
    }

    async fn fetch(&self, claims: Claims, name: &str) -> Result<Value, Refusal> {
        let user = body::decode_path(name).and_then(|name| UserId::new(&name).ok());
        let user = user.ok_or(Refusal(StatusCode::BAD_REQUEST, "that is no user id"))?;
        let limits = Arc::clone(&self.state.settings.borrow().limits);
        let is_own = user == claims.user;
        let now_ms = u64::try_from(self.state.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        let reader = claims.user.as_str().as_bytes();
        if !is_own && !self.reads.borrow_mut().take(reader, limits.user_key_reads, now_ms) {
            let text = "this user has read the keys of too many users";
            return Err(Refusal(StatusCode::TOO_MANY_REQUESTS, text));
        }
        let wish = Wish::Fetch {
            user: user.clone(),
            devices: Vec::new(),
            except: is_own.then_some(claims.device),
            keys_per_hour: limits.device_one_time_keys,
        };
        match self.directory.ask(wish).await {
            Answer::Bundles(taken) if taken.is_empty() => {
                Err(Refusal(StatusCode::NOT_FOUND, "this user has published no keys"))
            }
            Answer::Bundles(taken) => Ok(body::bundles(&user, &taken)),
            _ => Err(BUSY),
        }
    }
}

impl Refusal {
    fn into_response(self) -> Response<Full<Bytes>> {
        let Self(status, text) = self;
        let mut response = respond(status, &json!({ "error": text }));
        if status == StatusCode::METHOD_NOT_ALLOWED {
            let allowed = if text.starts_with("POST") { "POST" } else { "GET" };
            response.headers_mut().insert(ALLOW, HeaderValue::from_static(allowed));
        }
        response
    }
}

fn respond(status: StatusCode, body: &Value) -> Response<Full<Bytes>> {
    reply(status, "application/json", body.to_string())
}

const BUSY: Refusal =
    Refusal(StatusCode::SERVICE_UNAVAILABLE, "the directory is busy or has failed: try again");
const HANDSHAKE_MAX: Duration = Duration::from_secs(10);
static BOUNDS: Bounds = Bounds {
    interface: "key",
    connections_max: REST_CONNECTIONS_MAX,
    connection_max: Duration::from_secs(60),
    idle_max: Duration::from_secs(20),
};
