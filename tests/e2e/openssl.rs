//! The TLS layer, seen by another implementation.

use std::process::{Command, Output, Stdio};

use crate::support::gateway::{Gateway, Settings};

fn s_client(gateway: &Gateway, options: &[&str]) -> Output {
    Command::new("openssl")
        .args(["s_client", "-connect", &gateway.address().to_string(), "-servername", "localhost"])
        .args(["-verify_return_error", "-verify_hostname", "localhost", "-CAfile"])
        .arg(&gateway.keys.files.authority)
        .args(options)
        .stdin(Stdio::null())
        .output()
        .expect("openssl is installed")
}

#[test]
#[ignore = "needs openssl; run by .ci/run"]
fn openssl_connects_with_the_protocol_and_not_without() {
    let gateway = Gateway::start(Settings::default());
    let accepted = s_client(&gateway, &["-alpn", "ringpost/1"]);
    let text = String::from_utf8_lossy(&accepted.stdout);
    assert!(accepted.status.success(), "{accepted:?}");
    assert!(text.contains("ALPN protocol: ringpost/1"), "{text}");
    assert!(text.contains("TLSv1.3") && text.contains("Verify return code: 0 (ok)"), "{text}");

    for options in [&[][..], &["-alpn", "h2"], &["-alpn", "ringpost/1", "-tls1_2"]] {
        let refused = s_client(&gateway, options);
        let errors = String::from_utf8_lossy(&refused.stderr);
        assert!(!refused.status.success(), "{options:?}: {refused:?}");
        assert!(errors.contains("alert"), "refused by the gateway, {options:?}: {errors}");
    }
}
