//! Public keys over HTTPS: `POST /v1/keys` publishes those of the device that the token names,
//! `GET /v1/keys/{user}` takes a bundle for each device of a user. `engine/openapi.json` describes it.
//!
//! It runs on the control thread, beside the shards. Connections, requests, sizes and times are bounded.

mod body;

use std::cell::RefCell;
use std::net::{IpAddr, SocketAddr, TcpListener};
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
use ringpost_ring::host;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tracing::debug;

use super::auth::{AuthFault, Claims};
use super::http::{self, Bounds, reply};
use super::{State, admin, reload};
use crate::directory::{Answer, ControlPort, Handouts, Request as Wish, TakenBundle};
use crate::limits::{
    AddressTable, Admission, Gate, KEYS_NEWS_MAX, REST_BODY_BYTES_MAX, REST_CONNECTIONS_MAX,
    REST_REQUEST_MS_MAX,
};
use crate::shard::message::KeysLowNews;

/// What the interface serves, and by what rules.
pub struct KeysInterface {
    /// Bound already.
    pub listener: TcpListener,
    /// Connections of an address count wherever they come to.
    pub addresses: Arc<AddressTable>,
    /// The shards that are homes of users.
    pub storage_shards: u16,
}

/// What the interface works with.
struct Interface {
    state: Rc<State>,
    directory: ControlPort,
    addresses: Arc<AddressTable>,
    storage_shards: u16,
    /// What each user has asked for.
    requests: RefCell<Handouts>,
    /// For news that the shards have not taken yet.
    news: Arc<Semaphore>,
}

/// Why a request is refused.
struct Refusal(StatusCode, &'static str);

/// Serves as long as the gateway runs.
pub(super) fn start(
    interface: KeysInterface,
    state: Rc<State>,
    directory: ControlPort,
) -> std::io::Result<()> {
    let KeysInterface { listener, addresses, storage_shards } = interface;
    let listener = admin::listen(listener)?;
    let interface = Rc::new(Interface {
        state,
        directory,
        addresses,
        storage_shards,
        requests: RefCell::default(),
        news: Arc::new(Semaphore::new(KEYS_NEWS_MAX)),
    });
    tokio::task::spawn_local(async move {
        let serve_connection = |stream, peer| serve_connection(stream, peer, Rc::clone(&interface));
        http::serve(listener, &BOUNDS, serve_connection).await;
    });
    Ok(())
}

async fn serve_connection(stream: TcpStream, peer: SocketAddr, interface: Rc<Interface>) {
    let Some(_admission) = interface.admit(peer.ip()) else { return };
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
    /// As a client's connection.
    fn admit(&self, address: IpAddr) -> Option<Admission> {
        let limits = Arc::clone(&self.state.settings.borrow().limits);
        let gate = Gate::new(Arc::clone(&self.addresses), limits);
        let admitted = gate.admit(address, now_ms());
        let refused = |refusal| {
            debug!(%address, ?refusal, "connection of the key interface refused");
            self.state.metrics.address_refused();
        };
        admitted.map_err(refused).ok()
    }

    /// A request of `user` that costs the directory something.
    fn count(&self, user: &UserId, text: &'static str) -> Result<(), Refusal> {
        let rate = self.state.settings.borrow().limits.user_key_reads;
        if self.requests.borrow_mut().take(user.as_str().as_bytes(), rate, now_ms()) {
            return Ok(());
        }
        self.state.metrics.user_refused();
        Err(Refusal(StatusCode::TOO_MANY_REQUESTS, text))
    }

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
        self.count(&claims.user, "this user has published keys too often")?;
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
        if !is_own {
            self.count(&claims.user, "this user has read the keys of too many users")?;
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
            Answer::Bundles(taken) => {
                self.tell_owners(&user, &taken);
                Ok(body::bundles(&user, &taken))
            }
            _ => Err(BUSY),
        }
    }

    /// Devices whose keys were taken hear of it when few are left. When the shards are behind with
    /// that, the next key taken tells it.
    fn tell_owners(&self, user: &UserId, taken: &[TakenBundle]) {
        let home = usize::from(user.slot().shard(self.storage_shards));
        for news in taken.iter().filter_map(|taken| KeysLowNews::of(user, taken)) {
            let Ok(permit) = Arc::clone(&self.news).try_acquire_owned() else { return };
            self.state.ports.borrow()[home].tell_keys_low(news, permit);
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

/// Monotonic, the same clock as the shards'.
fn now_ms() -> u64 {
    host::monotonic_ns() / 1_000_000
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
