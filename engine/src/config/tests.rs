use std::path::Path;

use super::limits::RawLimits;
use super::raw::{RawAuth, RawConfig, RawDrain, RawLog, RawStorage, RawTls};
use super::{Config, ConfigFault, LogFormat};
use crate::limits::Rate;

const REFERENCE: &str = include_str!("../../reference.toml");
const REQUIRED: &str = r#"
data_dir = "ringpost-data"
tls = { certificate_path = "cert.pem", key_path = "key.pem" }
auth = { jwks_path = "jwks.json" }
"#;

fn parse(text: &str) -> Result<Config, ConfigFault> {
    Config::parse(Path::new("etc/ringpost.toml"), text)
}

fn refused(text: &str) -> (String, String) {
    let fault = parse(text).unwrap_err();
    (fault.to_string(), fault.fix())
}

#[test]
fn the_reference_shows_the_defaults() {
    assert_eq!(parse(REFERENCE).unwrap(), parse(REQUIRED).unwrap());
}

#[test]
fn the_reference_names_every_key() {
    let uncommented: String = REFERENCE
        .lines()
        .map(|line| line.strip_prefix('#').filter(|key| !key.starts_with(' ')).unwrap_or(line))
        .flat_map(|line| [line, "\n"])
        .collect();
    // No `..`: a new key does not compile until it is listed here, and fails until documented.
    let RawConfig {
        listen,
        admin_listen,
        data_dir,
        shards,
        storage_shards,
        tls: RawTls { certificate_path, key_path },
        auth: RawAuth { jwks_path, audience },
        limits,
        storage: RawStorage { segment_bytes, cache_bytes, reclaim_bytes_per_second },
        drain: RawDrain { drain_ms_max, reconnect_jitter_ms },
        log: RawLog { filter, format },
    } = toml::from_str(&uncommented).unwrap();
    let addresses = [listen, admin_listen].map(|key| key.is_some());
    let paths = [data_dir, certificate_path, key_path, jwks_path].map(|key| key.is_some());
    let texts = [audience, filter].map(|key| key.is_some());
    let numbers = [
        shards,
        storage_shards,
        segment_bytes,
        cache_bytes,
        reclaim_bytes_per_second,
        drain_ms_max,
        reconnect_jitter_ms,
    ]
    .map(|key| key.is_some());
    let all =
        [&addresses[..], &paths, &texts, &numbers, &[format.is_some()], &named_limits(limits)]
            .concat();
    assert!(all.iter().all(|&named| named), "{all:?}");
}

fn named_limits(limits: RawLimits) -> Vec<bool> {
    let RawLimits {
        connections_per_shard_max,
        frame_bytes_max,
        mailbox_records_max,
        mailbox_bytes_max,
        send_buffer_bytes,
        receive_buffer_bytes,
        connection_frames_per_second,
        connection_frames_burst,
        connection_bytes_per_second,
        connection_bytes_burst,
        user_sends_per_second,
        user_sends_burst,
        address_accepts_per_second,
        address_accepts_burst,
        address_connections_max,
        addresses_max,
        handshakes_pending_max,
        handshake_steps_per_turn,
        handshake_ms_max,
        send_stall_ms_max,
        receive_bytes_per_turn,
        receive_frames_per_turn,
        address_exempt,
    } = limits;
    let numbers = [
        connections_per_shard_max,
        frame_bytes_max,
        mailbox_records_max,
        mailbox_bytes_max,
        send_buffer_bytes,
        receive_buffer_bytes,
        connection_frames_per_second,
        connection_frames_burst,
        connection_bytes_per_second,
        connection_bytes_burst,
        user_sends_per_second,
        user_sends_burst,
        address_accepts_per_second,
        address_accepts_burst,
        address_connections_max,
        addresses_max,
        handshakes_pending_max,
        handshake_steps_per_turn,
        handshake_ms_max,
        send_stall_ms_max,
        receive_bytes_per_turn,
        receive_frames_per_turn,
    ];
    let named = numbers.map(|key| key.is_some());
    named.into_iter().chain([address_exempt.is_some()]).collect()
}

#[test]
fn an_unknown_key_is_named_with_its_line() {
    let (text, fix) = refused("listen = \"127.0.0.1:1\"\n\n[limits]\nframe_byte_max = 1\n");
    assert!(text.starts_with("etc/ringpost.toml:4: unknown field `frame_byte_max`"), "{text}");
    assert!(text.contains("`frame_bytes_max`"), "{text}");
    assert!(fix.contains("reference.toml"));
}

#[test]
fn a_limit_cannot_be_raised() {
    let (text, fix) = refused(&format!("{REQUIRED}\n[limits]\nmailbox_records_max = 1001\n"));
    assert_eq!(text, "etc/ringpost.toml:7: limits.mailbox_records_max = 1001 is not allowed");
    assert_eq!(fix, "set limits.mailbox_records_max to a number from 4 to 1000");
}

#[test]
fn storage_shards_fit_into_shards() {
    let (text, fix) = refused("shards = 2\nstorage_shards = 3");
    assert_eq!(text, "etc/ringpost.toml:2: storage_shards = 3 is not allowed");
    assert_eq!(fix, "set storage_shards to a number from 1 to 2");
    let (text, _) = refused("shards = 0");
    assert_eq!(text, "etc/ringpost.toml:1: shards = 0 is not allowed");
}

#[test]
fn a_wrong_type_is_named_with_line_and_key() {
    let (text, _) = refused("\nshards = \"two\"\n");
    assert!(text.starts_with("etc/ringpost.toml:2: shards: "), "{text}");
    let (text, _) = refused("listen = \"localhost\"");
    assert!(text.starts_with("etc/ringpost.toml:1: listen: "), "{text}");
    let (text, _) = refused("[log]\nformat = \"xml\"");
    assert!(text.starts_with("etc/ringpost.toml:2: format: "), "{text}");
    assert!(text.contains("`text` or `json`"), "{text}");
    let (text, _) = refused("shards = -1");
    assert!(text.starts_with("etc/ringpost.toml:1: shards: "), "{text}");
}

#[test]
fn text_that_is_not_toml_names_its_line() {
    let (text, _) = refused("shards = 1\nlisten : 2\n");
    assert!(text.starts_with("etc/ringpost.toml:2: "), "{text}");
}

#[test]
fn a_required_key_is_named() {
    let (text, fix) = refused("data_dir = \"d\"\n");
    assert_eq!(text, "etc/ringpost.toml: tls.certificate_path is missing");
    assert!(fix.starts_with("set tls.certificate_path to the PEM file"), "{fix}");
}

#[test]
fn a_bad_log_filter_is_refused() {
    let (text, fix) = refused(&format!("{REQUIRED}\n[log]\nfilter = \"a=b=c\"\n"));
    assert_eq!(text, "etc/ringpost.toml:7: log.filter = \"a=b=c\" is not allowed");
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
    assert_eq!(text, "etc/ringpost.toml:9: limits.address_exempt = \"10.0.0.1/8\" is not allowed");
    assert!(fix.contains("bits behind the prefix are set"), "{fix}");
    let (_, fix) = refused(&format!("{REQUIRED}\n[limits]\nuser_sends_burst = 0\n"));
    assert_eq!(fix, "set limits.user_sends_burst to a number from 1 to 4294967295");
}
