//! A web server with one page: a key set, or a fault.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex};
use std::thread;

use super::gateway::own_address;
use super::keys::Keys;

pub struct KeyServer {
    address: SocketAddr,
    /// The whole answer.
    answer: Arc<Mutex<Vec<u8>>>,
}

impl KeyServer {
    /// It fails until it has keys. Its thread ends with the process.
    pub fn start() -> Self {
        let listener = TcpListener::bind((own_address(), 0)).unwrap();
        let server = Self { address: listener.local_addr().unwrap(), answer: Arc::default() };
        server.fail();
        let answer = Arc::clone(&server.answer);
        thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut request = [0; 4096];
                let _ = stream.read(&mut request);
                let _ = stream.write_all(&answer.lock().unwrap());
            }
        });
        server
    }

    pub fn url(&self) -> String {
        format!("http://{}/jwks.json", self.address)
    }

    pub fn show(&self, keys: &Keys) {
        let set = std::fs::read(&keys.files.jwks).unwrap();
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", set.len());
        *self.answer.lock().unwrap() = [head.as_bytes(), &set].concat();
    }

    pub fn fail(&self) {
        let answer = b"HTTP/1.1 500 Oh\r\nContent-Length: 0\r\n\r\n";
        *self.answer.lock().unwrap() = answer.to_vec();
    }
}
