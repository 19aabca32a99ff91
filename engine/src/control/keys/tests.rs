use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc;
use std::thread;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::PrivateKeyDer;
use rustls::{ServerConnection, StreamOwned};

use super::*;
use crate::control::token::TokenKey;
use crate::limits::KEY_SET_BYTES_MAX;

/// A server that gives these answers, one for each connection, and then none.
fn server(answers: Vec<Vec<u8>>) -> SocketAddr {
    serve(answers, |stream| stream)
}

fn serve<S: Read + Write>(
    answers: Vec<Vec<u8>>,
    mut wrap: impl FnMut(TcpStream) -> S + Send + 'static,
) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for answer in answers {
            let mut stream = wrap(listener.accept().unwrap().0);
            let mut request = [0; 4096];
            let length = stream.read(&mut request).unwrap_or(0);
            if length > 0 {
                let request = String::from_utf8_lossy(&request[..length]);
                assert!(request.starts_with("GET /keys HTTP/1.1\r\n"), "{request}");
                // A client that has enough goes away.
                let _ = stream.write_all(&answer);
                let _ = stream.flush();
            }
        }
    });
    address
}

fn answer(status: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n{headers}\r\n", body.len());
    [head.as_bytes(), body].concat()
}

fn set() -> Vec<u8> {
    let key = TokenKey::from_pem(KeyPair::generate().unwrap().serialize_pem().as_bytes()).unwrap();
    serde_json::to_vec(&key.jwk_set()).unwrap()
}

fn auth(url: &str) -> AuthConfig {
    let url = KeySetUrl::parse(url).unwrap();
    AuthConfig { keys: KeySource::Url(url), audience: "ringpost".to_owned() }
}

fn fetcher(address: SocketAddr) -> Fetcher {
    let url = KeySetUrl::parse(&format!("http://{address}/keys")).unwrap();
    Fetcher::new(&url, Duration::from_secs(60)).unwrap()
}

fn run<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(future)
}

#[test]
fn a_set_is_fetched_with_its_age() {
    let body = set();
    let (ok, kept) = ("200 OK", "Cache-Control: public, Max-Age=\"77\"\r\n");
    let chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n";
    let fetcher = fetcher(server(vec![
        answer(ok, "", &body),
        answer(ok, kept, &body),
        answer(ok, "Cache-Control: max-age=9, no-store\r\n", &body),
        chunked.to_vec(),
    ]));
    for age in [None, Some(77), Some(0)] {
        let fetched = run(fetcher.fetch()).unwrap();
        assert_eq!((fetched.max_age_s, &fetched.body[..]), (age, &body[..]));
    }
    assert_eq!(&run(fetcher.fetch()).unwrap().body[..], b"{}");
}

#[test]
fn every_kind_of_fault_is_told_apart() {
    let endless = b"HTTP/1.1 200 OK\r\n\r\n".to_vec();
    let long = [endless.clone(), vec![b' '; KEY_SET_BYTES_MAX + 1]].concat();
    let fetcher = fetcher(server(vec![
        answer("500 Oh", "", b"{}"),
        answer("302 Found", "Location: http://127.0.0.1:1/keys\r\n", b""),
        answer("200 OK", "", &vec![b' '; KEY_SET_BYTES_MAX + 1]),
        long,
        b"SSH-2.0\r\n".to_vec(),
        answer("200 OK", "", b"{}")[..30].to_vec(),
    ]));
    let fault = || run(fetcher.fetch()).unwrap_err();
    assert!(matches!(fault(), FetchFault::Status(status) if status == 500));
    assert!(matches!(fault(), FetchFault::Status(status) if status == 302));
    assert!(matches!(fault(), FetchFault::TooLong));
    assert!(matches!(fault(), FetchFault::TooLong));
    assert!(matches!(fault(), FetchFault::Http(_)));
    assert!(matches!(fault(), FetchFault::Http(_)));

    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let url = KeySetUrl::parse(&format!("http://{nobody}/keys")).unwrap();
    let refused = run(Fetcher::new(&url, Duration::from_secs(60)).unwrap().fetch()).unwrap_err();
    assert!(matches!(refused, FetchFault::Connect { .. }), "{refused}");
}

#[test]
fn a_server_that_keeps_silent_is_given_up() {
    let (end, ended) = mpsc::channel::<()>();
    let silent = serve(vec![Vec::new(), Vec::new()], move |stream| {
        let _ = ended.recv();
        stream
    });
    let url = KeySetUrl::parse(&format!("http://{silent}/keys")).unwrap();
    let fetcher = Fetcher::new(&url, Duration::from_millis(20)).unwrap();
    assert!(matches!(run(fetcher.fetch()).unwrap_err(), FetchFault::TooSlow { ms: 20 }));
    drop(end);
}

#[test]
fn https_needs_an_authority_that_is_trusted() {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let pair = KeyPair::generate().unwrap();
    let params = CertificateParams::new(["localhost".to_owned()]).unwrap();
    let certificate = params.signed_by(&pair, &authority).unwrap().der().clone();
    let key = PrivateKeyDer::try_from(pair.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .unwrap();
    let config = Arc::new(config);
    let body = set();
    let address = serve(vec![answer("200 OK", "", &body), Vec::new()], move |stream| {
        StreamOwned::new(ServerConnection::new(Arc::clone(&config)).unwrap(), stream)
    });

    let place = tempfile::tempdir().unwrap();
    let ca_path = place.path().join("ca.pem");
    std::fs::write(&ca_path, authority.pem()).unwrap();
    let url = KeySetUrl::parse(&format!("https://localhost:{}/keys", address.port())).unwrap();
    let trusting = url.clone().trusting(Some(ca_path.clone()));
    let fetch =
        |url: &KeySetUrl| run(async { Fetcher::new(url, Duration::from_secs(60))?.fetch().await });
    assert_eq!(&fetch(&trusting).unwrap().body[..], &body[..]);
    match fetch(&url).unwrap_err() {
        FetchFault::Tls { .. } | FetchFault::NoAuthorities => {}
        fault => panic!("{fault}"),
    }
    std::fs::write(&ca_path, "no certificate").unwrap();
    assert!(matches!(fetch(&trusting).unwrap_err(), FetchFault::Authorities { .. }));
}

#[test]
fn the_last_good_set_outlives_its_server() {
    let place = tempfile::tempdir().unwrap();
    let (one, other) = (set(), set());
    let address = server(vec![
        b"HTTP/1.1 500 Oh\r\n\r\n".to_vec(),
        answer("200 OK", "", &one),
        answer("200 OK", "", b"{\"keys\": []}"),
        answer("200 OK", "", &other),
    ]);
    let auth = auth(&format!("http://{address}/keys"));
    let obtain = || obtain_now(&auth, place.path()).unwrap();
    let fault = obtain().err().expect("nothing is kept yet");
    assert!(fault.to_string().contains("500") && fault.fix().contains("jwks_url"), "{fault}");

    let first = obtain().unwrap();
    assert!(first.fault.is_none() && first.refresher.is_some());
    assert!(place.path().read_dir().unwrap().next().is_none(), "not kept unless asked to");
    first.keep();

    // Bad keys are no keys.
    let kept = obtain().unwrap();
    assert!(matches!(kept.fault, Some(KeysFault::Set(_))), "{:?}", kept.fault);
    assert_eq!(kept.verifier, first.verifier);
    assert!(kept.fetched_unix_ms <= unix_ms());
    let second = obtain().unwrap();
    assert_ne!(second.verifier, first.verifier);
    second.keep();
    let kept = obtain().unwrap();
    assert!(matches!(kept.fault, Some(KeysFault::Fetch { .. })));
    assert_eq!(kept.verifier, second.verifier);
}

#[test]
fn demand_is_heard_once() {
    let demand = Demand::default();
    demand.raise();
    demand.raise();
    run(async {
        demand.heard.notified().await;
        let again = tokio::time::timeout(Duration::from_millis(1), demand.heard.notified()).await;
        assert!(again.is_err());
        demand.pending.store(false, Ordering::Release);
        demand.raise();
        demand.heard.notified().await;
    });
}
