//! What the documentation says is shown by a test is shown by one.

use std::fs;
use std::path::PathBuf;

const QUIC: &str = include_str!("../quic.md");
const LINES: usize = 22;

/// Where the tests of a path such as `engine::ids` are.
fn source(path: &str) -> String {
    let root = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    let (kind, module) = path.split_once("::").unwrap_or_else(|| panic!("{path}: kind::module"));
    let quic = root.join("engine/src/transport/quic");
    let file = match kind {
        "engine" if module == "timers" => quic.join("timers.rs"),
        "engine" => quic.join(format!("tests/{module}.rs")),
        "e2e" => root.join(format!("tests/e2e/{module}.rs")),
        "client" => root.join(format!("client/tests/{module}.rs")),
        "python" => root.join(format!("tests/python/{module}.py")),
        other => panic!("{path}: no tests are called {other}"),
    };
    fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()))
}

#[test]
fn tests_that_the_list_of_quic_names_are_there() {
    let mut numbers = Vec::new();
    for line in QUIC.lines().filter(|line| line.starts_with("| ")) {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let [number, _, names] = cells[..] else { panic!("three cells: {line}") };
        let Ok(number) = number.parse::<usize>() else { continue };
        numbers.push(number);
        for name in names.split(", ") {
            let name = name.strip_prefix('`').and_then(|name| name.strip_suffix('`'));
            let (path, test) = name.and_then(|name| name.rsplit_once("::")).expect(line);
            let source = source(path);
            let is_there =
                ["fn", "def"].iter().any(|word| source.contains(&format!("{word} {test}(")));
            assert!(is_there, "{number}: {path} has no {test}");
        }
    }
    assert_eq!(numbers, (1..=LINES).collect::<Vec<_>>());
}
