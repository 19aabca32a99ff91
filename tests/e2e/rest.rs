//! Public keys over HTTPS: what the server answers is what `engine/openapi.json` says.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ringpost_protocol::wire::server_frame;
use rustls::pki_types::ServerName;
use rustls::{ClientConnection, StreamOwned};
use serde_json::{Value, json};

use crate::support::gateway::{Gateway, Settings};
use crate::support::raw::{Raw, tls_config};
use crate::support::{PATIENCE, wait_until};

const OPENAPI: &str = include_str!("../../engine/openapi.json");
/// Nobody else in these tests has these addresses.
const ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 254, 77, 3));
const OWNERS_ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 254, 77, 4));
const CROWDED_ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 254, 77, 5));
const PORT: u16 = 8_443;

struct Answer {
    status: u16,
    headers: String,
    body: Value,
}

/// One request over a connection of its own.
fn request_at(
    address: IpAddr,
    gateway: &Gateway,
    line: &str,
    token: Option<&str>,
    body: &str,
) -> Answer {
    let name = ServerName::try_from("localhost").unwrap();
    let config = tls_config(gateway, &[b"http/1.1"]);
    let tls = ClientConnection::new(Arc::clone(&config), name).unwrap();
    let socket = TcpStream::connect_timeout(&SocketAddr::new(address, PORT), PATIENCE).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut stream = StreamOwned::new(tls, socket);
    let token = token.map(|token| format!("Authorization: Bearer {token}\r\n"));
    let (token, length) = (token.unwrap_or_default(), body.len());
    let head = format!(
        "{line} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{token}\
         Content-Length: {length}\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).unwrap();
    // The answer to a body that is too large comes before its end.
    let _ = stream.write_all(body.as_bytes());
    let mut text = String::new();
    let _ = stream.read_to_string(&mut text);
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{text:?}"));
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    let body = serde_json::from_str(body).unwrap_or_else(|error| panic!("{error}: {text}"));
    Answer { status, headers: head.to_ascii_lowercase(), body }
}

/// The same, checked against the description.
fn described(gateway: &Gateway, line: &str, token: Option<&str>, body: &str) -> (u16, Value) {
    let answer = request_at(ADDRESS, gateway, line, token, body);
    let api: Value = serde_json::from_str(OPENAPI).unwrap();
    let (method, path) = line.split_once(' ').unwrap();
    let path = if path == "/v1/keys" { "/v1/keys" } else { "/v1/keys/{user}" };
    let method = method.to_ascii_lowercase();
    // A method that is not described is refused as it is told for those that are.
    let item = &api["paths"][path];
    let operation = item.get(&method).or_else(|| item.as_object().unwrap().values().next());
    let response = &operation.unwrap()["responses"][answer.status.to_string()];
    let response = resolve(&api, response);
    assert!(response.is_object(), "{line}: {} is not described", answer.status);
    assert!(answer.headers.contains("content-type: application/json"), "{}", answer.headers);
    let schema = &response["content"]["application/json"]["schema"];
    check(&api, schema, &answer.body, line);
    (answer.status, answer.body)
}

fn resolve<'a>(api: &'a Value, value: &'a Value) -> &'a Value {
    match value["$ref"].as_str() {
        Some(reference) => api.pointer(reference.strip_prefix('#').unwrap()).unwrap(),
        None => value,
    }
}

/// Of JSON schema what the description uses.
fn check(api: &Value, schema: &Value, value: &Value, at: &str) {
    let schema = resolve(api, schema);
    match schema["type"].as_str().unwrap_or_else(|| panic!("{at}: no type in {schema}")) {
        "object" => {
            let fields = value.as_object().unwrap_or_else(|| panic!("{at}: {value}"));
            for name in schema["required"].as_array().into_iter().flatten() {
                assert!(fields.contains_key(name.as_str().unwrap()), "{at}: no {name}");
            }
            for (name, field) in fields {
                let schema = &schema["properties"][name];
                assert!(schema.is_object(), "{at}: {name} is not described");
                check(api, schema, field, &format!("{at}/{name}"));
            }
        }
        "array" => {
            let items = value.as_array().unwrap_or_else(|| panic!("{at}: {value}"));
            assert!(items.len() as u64 <= schema["maxItems"].as_u64().unwrap(), "{at}");
            items.iter().for_each(|item| check(api, &schema["items"], item, at));
        }
        "integer" => {
            let number = value.as_u64().unwrap_or_else(|| panic!("{at}: {value}"));
            assert!(number <= schema["maximum"].as_u64().unwrap_or(u64::MAX), "{at}: {number}");
        }
        "string" => {
            let text = value.as_str().unwrap_or_else(|| panic!("{at}: {value}"));
            if schema["format"] == "byte" {
                assert!(STANDARD.decode(text).is_ok(), "{at}: {text} is not base64");
            }
        }
        other => panic!("{at}: {other}"),
    }
}

fn key(key_id: u32) -> Value {
    json!({ "key_id": key_id, "key": STANDARD.encode([7; 32]) })
}

fn keys(one_time: std::ops::Range<u32>) -> Value {
    let mut signed = key(1);
    signed["signature"] = STANDARD.encode([9; 64]).into();
    json!({
        "identity_key": STANDARD.encode([1; 32]),
        "signed_prekey": signed,
        "one_time_keys": one_time.map(key).collect::<Vec<_>>(),
    })
}

#[test]
fn answers_are_what_the_description_says() {
    let settings = Settings {
        listen: Some(ADDRESS),
        listener: "keys.listen = \"127.254.77.3:8443\"\n",
        limits: "user_key_reads_per_hour = 20, device_one_time_keys_per_hour = 2",
        ..Settings::default()
    };
    let mut gateway = Gateway::start(settings);
    let (bob, alice) = (gateway.keys.token("bob", "phone"), gateway.keys.token("alice", "phone"));
    let (bob, alice) = (Some(&bob[..]), Some(&alice[..]));
    let ask = |line, token, body: &str| described(&gateway, line, token, body);
    let publish = |body: &Value| described(&gateway, "POST /v1/keys", bob, &body.to_string());

    assert_eq!(ask("GET /v1/keys/bob", alice, "").0, 404);
    assert_eq!(publish(&json!({ "one_time_keys": [key(4)] })).0, 404, "no identity yet");
    assert_eq!(publish(&keys(10..15)), (200, json!({ "one_time_keys": 5 })));
    for left in (2..5_u32).rev() {
        let (status, taken) = ask("GET /v1/keys/bob", alice, "");
        let [bundle] = &taken["bundles"].as_array().unwrap()[..] else { panic!("{taken}") };
        assert_eq!(
            (status, &taken["user"], &bundle["device"]),
            (200, &json!("bob"), &json!("phone"))
        );
        // Two an hour, then the signed prekey alone.
        let expected = if left > 2 { key(14 - left) } else { Value::Null };
        assert_eq!(bundle["one_time_key"], expected, "{taken}");
        assert_eq!(bundle["signed_prekey"], keys(0..0)["signed_prekey"]);
    }
    // The same stock as over a client's connection.
    assert_eq!(gateway.metric("ringpost_one_time_keys"), 3.0);
    assert_eq!(gateway.metric("ringpost_one_time_keys_handed_out_total"), 2.0);

    for (line, token, body, status) in [
        ("POST /v1/keys", None, "{}", 401),
        ("GET /v1/keys/bob", None, "", 401),
        ("GET /v1/keys/bob", Some("no.token.atall"), "", 401),
        ("POST /v1/keys", bob, "[", 400),
        ("POST /v1/keys", bob, "{\"identity_key\": \"???\"}", 400),
        ("GET /v1/keys/%ff", bob, "", 400),
        ("PUT /v1/keys", bob, "{}", 405),
        ("DELETE /v1/keys/bob", bob, "", 405),
    ] {
        assert_eq!(ask(line, token, body).0, status, "{line}");
    }
    assert_eq!(ask("POST /v1/keys", bob, &" ".repeat(70_000)).0, 413);
    for first in (1_000..2_000).step_by(100) {
        let status = publish(&keys(first..first + 100)).0;
        assert_eq!(status, if first < 1_900 { 200 } else { 409 }, "the stock is bounded");
    }
    let statuses: Vec<u16> = (0..17).map(|_| ask("GET /v1/keys/x", alice, "").0).collect();
    assert_eq!(statuses[..16], [404; 16]);
    assert_eq!(statuses[16], 429, "nobody reads through all users");
    let statuses: Vec<u16> = (0..9).map(|_| publish(&json!({})).0).collect();
    assert_eq!(statuses[..8], [200; 8]);
    assert_eq!(statuses[8], 429, "nobody keeps the disk busy");
    assert_eq!(gateway.metric("ringpost_key_interface_refusals_total{limit=\"user\"}"), 2.0);
    assert_eq!(ask("GET /v1/keys/bob", bob, "").0, 404, "one's own are free, but for oneself");
    assert_eq!(request_at(ADDRESS, &gateway, "GET /", bob, "").status, 404);

    // A client hears that its keys are there, and the gateway ends in good order.
    drop(Raw::open(&gateway, "bob", "phone"));
    assert!(gateway.stop().success());
}

#[test]
fn owners_hear_of_keys_that_were_taken_over_https() {
    let settings = Settings {
        listen: Some(OWNERS_ADDRESS),
        listener: "keys.listen = \"127.254.77.4:8443\"\n",
        limits: "device_one_time_keys_per_hour = 0",
        ..Settings::default()
    };
    let gateway = Gateway::start(settings);
    let (bob, alice) = (gateway.keys.token("bob", "phone"), gateway.keys.token("alice", "phone"));
    let ask = |line, token: &String, body: &str| {
        request_at(OWNERS_ADDRESS, &gateway, line, Some(token), body).status
    };
    assert_eq!(ask("POST /v1/keys", &bob, &keys(0..22).to_string()), 200);
    let mut raw = Raw::open(&gateway, "bob", "phone");
    for remaining in [19, 18] {
        while gateway.metric("ringpost_one_time_keys") > f64::from(remaining) {
            assert_eq!(ask("GET /v1/keys/bob", &alice, ""), 200);
        }
        let told = raw.expect(|frame| match frame {
            server_frame::Frame::KeysLow(low) => Some(low.remaining_count),
            _ => None,
        });
        assert_eq!(told, remaining);
    }
}

#[test]
fn an_address_has_so_many_connections_wherever_they_come_to() {
    let settings = Settings {
        listen: Some(CROWDED_ADDRESS),
        listener: "keys.listen = \"127.254.77.5:8443\"\n",
        limits: "address_exempt = [], address_connections_max = 2",
        ..Settings::default()
    };
    let gateway = Gateway::start(settings);
    let token = gateway.keys.token("bob", "phone");
    let ask = || request_at(CROWDED_ADDRESS, &gateway, "GET /v1/keys/bob", Some(&token), "").status;
    let _first = Raw::open(&gateway, "bob", "phone");
    let second = Raw::open(&gateway, "alice", "phone");
    let refusals = "ringpost_key_interface_refusals_total{limit=\"address\"}";
    assert_eq!(gateway.metric(refusals), 0.0);
    let mut third = TcpStream::connect((CROWDED_ADDRESS, PORT)).unwrap();
    third.set_read_timeout(Some(PATIENCE)).unwrap();
    assert!(matches!(third.read(&mut [0]), Ok(0) | Err(_)), "it is closed");
    assert_eq!(gateway.metric(refusals), 1.0);
    drop(second);
    wait_until("an address has room again", || {
        (gateway.metric("ringpost_connections") < 2.0).then_some(())
    });
    assert_eq!(ask(), 404);
}
