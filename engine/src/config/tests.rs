use std::path::Path;

use super::source::Source;
use super::{Config, ConfigFaults, KeySource, LogFormat, read};
use crate::limits::Rate;

const REFERENCE: &str = include_str!("../../reference.toml");
const REQUIRED: &str = r#"
data_dir = "ringpost-data"
tls = { certificate_path = "cert.pem", key_path = "key.pem" }
auth = { jwks_path = "jwks.json" }
"#;

fn parse(text: &str) -> Result<Config, ConfigFaults> {
    Config::parse(Path::new("etc/ringpost.toml"), text)
}

fn refused(text: &str) -> (String, String) {
    let faults = parse(text).unwrap_err();
    let fault = &faults.0[0];
    (fault.to_string(), fault.fix())
}

#[test]
fn the_reference_shows_the_defaults() {
    assert_eq!(parse(REFERENCE).unwrap(), parse(REQUIRED).unwrap());
}

/// Both ways: what the reference names the parser asks for, and what it asks for is documented.
#[test]
fn the_reference_names_every_key() {
    let uncommented: String = REFERENCE
        .lines()
        .map(|line| line.strip_prefix('#').filter(|key| !key.starts_with(' ')).unwrap_or(line))
        .flat_map(|line| [line, "\n"])
        .collect();
    let source = Source::new(Path::new("reference.toml"), &uncommented);
    // Of two keys only one may be set, so there are faults.
    let _ = source.read(read::config);
    let mut known = source.known();
    known.sort();
    let mut named = Vec::new();
    for (key, value) in uncommented.parse::<toml::Table>().unwrap() {
        named.extend(
            value.as_table().into_iter().flatten().map(|(inner, _)| [&key, ".", inner].concat()),
        );
        named.push(key);
    }
    named.sort();
    assert_eq!(known, named);
}

#[test]
fn an_unknown_key_is_named_with_its_place() {
    let (text, fix) = refused(&format!("{REQUIRED}\n[limits]\n  frame_byte_max = 1\n"));
    assert_eq!(text, "etc/ringpost.toml:7:3: there is no key limits.frame_byte_max");
    assert!(fix.contains("limits.frame_bytes_max") && fix.contains("reference.toml"), "{fix}");
    let (text, fix) = refused(&format!("{REQUIRED}\n[lmits]\nframe_bytes_max = 1\n"));
    assert_eq!(text, "etc/ringpost.toml:6:2: there is no key lmits");
    assert!(fix.contains("limits"), "{fix}");
    let (_, fix) = refused(&format!("drain_ms_max = 1\n{REQUIRED}"));
    assert!(fix.contains("drain.drain_ms_max"), "{fix}");
    let (_, fix) = refused(&format!("zzz = 1\n{REQUIRED}"));
    assert!(!fix.contains("perhaps"), "{fix}");
}

#[test]
fn all_faults_are_told_in_the_order_of_the_file() {
    let faults = parse("shards = 0\nlisten = 7\n[tls]\nkey = \"k\"\n").unwrap_err();
    let told: Vec<_> = faults.0.iter().map(ToString::to_string).collect();
    assert!(told[0].starts_with("etc/ringpost.toml:1:10: shards = 0 is not allowed"), "{told:?}");
    assert!(told[1].starts_with("etc/ringpost.toml:2:10: listen = 7 is not allowed"), "{told:?}");
    assert_eq!(told[2], "etc/ringpost.toml:4:1: there is no key tls.key");
    assert_eq!(told[3], "etc/ringpost.toml: data_dir is missing");
    assert_eq!(told.len(), 7, "{told:?}");
    assert_eq!(faults.to_string(), told.join("; "));
}

#[test]
fn a_limit_cannot_be_raised() {
    let (text, fix) = refused(&format!("{REQUIRED}\n[limits]\nmailbox_records_max = 1001\n"));
    assert_eq!(
        text,
        "etc/ringpost.toml:7:23: limits.mailbox_records_max = 1001 is not allowed; it takes a \
         number from 4 to 1000"
    );
    assert_eq!(fix, "set limits.mailbox_records_max to a number from 4 to 1000");
}

#[test]
fn storage_shards_fit_into_shards() {
    let (text, fix) = refused("shards = 2\nstorage_shards = 3");
    assert!(
        text.starts_with("etc/ringpost.toml:2:18: storage_shards = 3 is not allowed"),
        "{text}"
    );
    assert_eq!(fix, "set storage_shards to a number from 1 to 2");
}

#[test]
fn a_wrong_type_is_named_with_place_and_range() {
    for (line, key, allowed) in [
        ("shards = \"two\"", "shards", "a number from 1 to 256"),
        ("shards = -1", "shards", "a number from 1 to 256"),
        ("shards = 1.5", "shards", "a number from 1 to 256"),
        ("shards = 99999999999999999999", "shards", "a number from 1 to 256"),
        ("listen = \"localhost\"", "listen", "an IP address and a port"),
        ("data_dir = [1]", "data_dir", "a path in quotes"),
        ("data_dir = \"\"", "data_dir", "a path in quotes"),
        ("log = 7", "log", "a table: [log]"),
    ] {
        let (text, fix) = refused(line);
        assert!(text.starts_with("etc/ringpost.toml:1:"), "{text}");
        assert!(text.contains(&format!("{key} = ")) && text.contains(allowed), "{text}");
        assert!(fix.contains(allowed), "{fix}");
    }
    let (text, _) = refused("log.format = \"xml\"");
    assert!(
        text.contains("log.format = \"xml\"") && text.contains(r#""text" or "json""#),
        "{text}"
    );
    let (text, _) = refused(&format!("listen = \"{}\"", "x".repeat(100)));
    assert!(text.contains(&format!("listen = \"{}...", "x".repeat(59))), "{text}");
    assert_eq!(parse(&format!("shards = 0x1_0\n{REQUIRED}")).unwrap().shards, 16);
}

#[test]
fn text_that_is_not_toml_names_its_place() {
    let (text, _) = refused("shards = 1\nlisten : 2\n");
    assert!(text.starts_with("etc/ringpost.toml:2:8: "), "{text}");
    let (text, _) = refused("shards = 1\nshards = 2\n");
    assert!(text.starts_with("etc/ringpost.toml:2:1: "), "{text}");
    assert!(text.contains("duplicate"), "{text}");
}

#[test]
fn a_required_key_is_named() {
    let (text, fix) = refused("data_dir = \"d\"\n");
    assert_eq!(text, "etc/ringpost.toml: tls.certificate_path is missing");
    assert!(fix.starts_with("set tls.certificate_path to the PEM file"), "{fix}");
}

#[test]
fn keys_come_from_a_file_or_a_url() {
    let with = |auth: &str| REQUIRED.replace("jwks_path = \"jwks.json\"", auth);
    let keys = |auth: &str| parse(&with(auth)).unwrap().auth.keys;
    assert_eq!(keys("jwks_path = \"k\""), KeySource::File("etc/k".into()));
    let KeySource::Url(url) =
        keys("jwks_url = \"https://id.example/k\", jwks_ca_path = \"ca.pem\"")
    else {
        panic!("a URL is given")
    };
    assert_eq!(url.to_string(), "https://id.example/k");
    assert_eq!(url.ca_path(), Some(Path::new("etc/ca.pem")));
    let (text, fix) = refused(&with(""));
    assert_eq!(text, "etc/ringpost.toml: auth.jwks_path is missing");
    assert!(fix.contains("auth.jwks_url"), "{fix}");
    let (text, _) = refused(&with("jwks_path = \"k\", jwks_url = \"https://id.example/k\""));
    assert!(text.contains("auth.jwks_url = ") && text.contains("one of the two"), "{text}");
    let (text, _) = refused(&with("jwks_url = \"http://id.example/k\""));
    assert!(text.contains("it takes an https URL"), "{text}");
    let (text, _) = refused(&with("jwks_path = 7"));
    assert!(text.contains("a path in quotes"), "{text}");
}

#[test]
fn a_bad_log_filter_is_refused() {
    let (text, fix) = refused(&format!("{REQUIRED}\n[log]\nfilter = \"a=b=c\"\n"));
    let beginning =
        "etc/ringpost.toml:7:10: log.filter = \"a=b=c\" is not allowed; it takes a level";
    assert!(text.starts_with(beginning), "{text}");
    assert!(fix.contains("debug"), "{fix}");
    let json = parse(&format!("{REQUIRED}\n[log]\nformat = \"json\"\n")).unwrap();
    assert_eq!(json.log.format, LogFormat::Json);
}

#[test]
fn relative_paths_count_from_the_file() {
    let config = parse(REQUIRED).unwrap();
    assert_eq!(config.tls.key_path, Path::new("etc/key.pem"));
    assert_eq!(config.data_dir, Path::new("etc/ringpost-data"));
}

#[test]
fn a_missing_file_is_named() {
    let fault = Config::load(Path::new("/nowhere/ringpost.toml")).unwrap_err();
    assert!(fault.to_string().contains("/nowhere/ringpost.toml"), "{fault}");
}

#[test]
fn rates_and_ranges_of_addresses() {
    let limits = "[limits]\nuser_sends_per_second = 0\nuser_sends_burst = 1\n\
                  address_exempt = [\"10.0.0.0/8\", \"2001:db8::/32\"]\n";
    let limits = parse(&format!("{REQUIRED}\n{limits}")).unwrap().limits.live;
    assert_eq!(limits.user_sends, Rate { per_second: 0, burst: 1 });
    let ranges: Vec<_> = limits.address_exempt.iter().map(ToString::to_string).collect();
    assert_eq!(ranges, ["10.0.0.0/8", "2001:db8::/32"]);

    let none = parse(&format!("{REQUIRED}\n[limits]\naddress_exempt = []\n")).unwrap();
    assert_eq!(none.limits.live.address_exempt, []);
    let exempt = "[limits]\naddress_exempt = [\n\"10.0.0.0/8\",\n\"10.0.0.1/8\"\n]\n";
    let (text, fix) = refused(&format!("{REQUIRED}\n{exempt}"));
    let beginning = "etc/ringpost.toml:9:1: limits.address_exempt = \"10.0.0.1/8\" is not allowed";
    assert!(text.starts_with(beginning), "{text}");
    assert!(fix.contains("bits behind the prefix are set"), "{fix}");
    let (_, fix) = refused(&format!("{REQUIRED}\n[limits]\nuser_sends_burst = 0\n"));
    assert_eq!(fix, "set limits.user_sends_burst to a number from 1 to 4294967295");
}

#[test]
fn balancers_are_named() {
    let balanced = |trusted: &str| {
        let text = format!("proxy_protocol = true\nproxy_trusted = {trusted}\n{REQUIRED}");
        parse(&text).map(|config| config.proxy_trusted)
    };
    let ranges = balanced("[\"10.1.0.0/16\", \"10.2.0.7\"]").unwrap().unwrap();
    let ranges: Vec<_> = ranges.iter().map(ToString::to_string).collect();
    assert_eq!(ranges, ["10.1.0.0/16", "10.2.0.7/32"]);
    let faults = balanced("[]").unwrap_err();
    assert_eq!(faults.to_string(), "etc/ringpost.toml: proxy_trusted is missing");
    let faults = balanced("[\"balancer\"]").unwrap_err();
    assert!(faults.to_string().contains(":2:18: proxy_trusted"), "{faults}");
    assert_eq!(parse(REQUIRED).unwrap().proxy_trusted, None);
    let (text, _) = refused(&format!("proxy_protocol = 1\n{REQUIRED}"));
    assert!(text.contains("true or false"), "{text}");
}
