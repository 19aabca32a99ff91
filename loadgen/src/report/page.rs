//! The report as one HTML file: no script, no font, no picture from elsewhere.

use std::fmt::Write as _;

use crate::host::{Host, Settings};
use crate::report::rows::Rows;
use crate::report::svg::{Chart, escape};

/// What a scenario has to tell.
#[derive(Clone, Debug)]
pub struct Story {
    /// Name of the scenario.
    pub scenario: &'static str,
    /// Whether every message did what it should.
    pub clean: bool,
    pub rows: Rows,
    pub host: Host,
    pub settings: Settings,
    pub charts: Vec<Chart>,
}

impl Story {
    pub fn html(&self) -> String {
        let mut out = String::new();
        let verdict = if self.clean {
            ("good", "Every message was delivered once, in order, or told to be refused.")
        } else {
            ("bad", "Not every message did what it should: see the figures.")
        };
        put(
            &mut out,
            format_args!(
                "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n\
                 <meta name=\"viewport\" content=\"width=device-width\">\n\
                 <title>Ringpost: {0}, {1}</title>\n<style>\n{STYLE}</style>\n\
                 <main>\n<h1>Ringpost under load: {0}</h1>\n<p class=\"{2}\">{3}</p>\n",
                self.scenario,
                escape(&self.host.date),
                verdict.0,
                verdict.1
            ),
        );
        put_table(&mut out, "Figures", self.rows.iter());
        for chart in &self.charts {
            let svg = chart.svg();
            if !svg.is_empty() {
                put(
                    &mut out,
                    format_args!(
                        "<section><h2>{}</h2>\n{}{svg}</section>\n",
                        escape(&chart.title),
                        chart.legend()
                    ),
                );
            }
        }
        let settings: Vec<(&str, String)> = self
            .settings
            .iter()
            .filter(|(_, value)| !value.is_null())
            .map(|(name, value)| (*name, plain(value)))
            .collect();
        put_table(
            &mut out,
            "Settings",
            settings.iter().map(|(name, value)| (*name, value.as_str())),
        );
        let facts = serde_json::to_value(&self.host).unwrap_or_default();
        let facts: Vec<(String, String)> = facts
            .as_object()
            .into_iter()
            .flatten()
            .filter(|(_, value)| !value.is_null())
            .map(|(name, value)| (name.clone(), plain(value)))
            .collect();
        put_table(
            &mut out,
            "Host",
            facts.iter().map(|(name, value)| (name.as_str(), value.as_str())),
        );
        out.push_str("</main>\n</html>\n");
        out
    }
}

fn put_table<'a>(out: &mut String, title: &str, rows: impl Iterator<Item = (&'a str, &'a str)>) {
    put(out, format_args!("<section><h2>{title}</h2>\n<table>\n"));
    for (name, value) in rows {
        put(
            out,
            format_args!(
                "<tr><th scope=\"row\">{}</th><td>{}</td></tr>\n",
                escape(name),
                escape(value)
            ),
        );
    }
    out.push_str("</table></section>\n");
}

/// A JSON value without the quotes of a string.
fn plain(value: &serde_json::Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn put(out: &mut String, text: std::fmt::Arguments<'_>) {
    out.write_fmt(text).expect("writing to a string does not fail");
}

const STYLE: &str = "\
:root { color-scheme: light dark; --ground: #fcfcfb; --ink: #1c1c1a; --soft: #62625c;
  --grid: #e4e3de; --s0: #2a78d6; --s1: #d9541e; --s2: #1b8a5a; --s3: #8a4fc2; --s4: #b8860b;
  --good: #1b7a4b; --bad: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --ground: #1a1a19; --ink: #f0efe9; --soft: #a3a29a;
  --grid: #363633; --s0: #5b9cec; --s1: #f08655; --s2: #4cc08b; --s3: #b98be6; --s4: #dcb04a;
  --good: #5fce96; --bad: #f28b82; } }
body { background: var(--ground); color: var(--ink); font: 15px/1.5 system-ui, sans-serif;
  margin: 0; }
main { max-width: 60rem; margin: 0 auto; padding: 1.5rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.05rem; margin: 1.75rem 0 .4rem; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; vertical-align: top; padding: .2rem 1rem .2rem 0;
  border-bottom: 1px solid var(--grid); overflow-wrap: anywhere; }
th { font-weight: 400; color: var(--soft); width: 18rem; }
td { font-variant-numeric: tabular-nums; }
.good { color: var(--good); } .bad { color: var(--bad); font-weight: 600; }
svg { width: 100%; height: auto; display: block; }
svg text { fill: var(--soft); font: 11px system-ui, sans-serif; }
.grid { stroke: var(--grid); } .axis { stroke: var(--soft); }
.end { text-anchor: end; } .mid { text-anchor: middle; }
line.mark { stroke: var(--soft); stroke-dasharray: 3 3; }
.line { fill: none; stroke-width: 1.8; stroke-linejoin: round; }
.line.s0 { stroke: var(--s0); } .line.s1 { stroke: var(--s1); } .line.s2 { stroke: var(--s2); }
.line.s3 { stroke: var(--s3); } .line.s4 { stroke: var(--s4); }
.point { fill: transparent; } .point:hover { fill-opacity: .8; }
.point.s0:hover { fill: var(--s0); } .point.s1:hover { fill: var(--s1); }
.point.s2:hover { fill: var(--s2); } .point.s3:hover { fill: var(--s3); }
.point.s4:hover { fill: var(--s4); }
.legend { margin: 0 0 .3rem; color: var(--soft); }
.key { margin-right: 1.2rem; } .key::before { content: \"\"; display: inline-block; width: 1.1em;
  height: .2em; margin-right: .45em; vertical-align: middle; }
.key.s0::before { background: var(--s0); } .key.s1::before { background: var(--s1); }
.key.s2::before { background: var(--s2); } .key.s3::before { background: var(--s3); }
.key.s4::before { background: var(--s4); }
";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::svg::{Line, XAxis};

    #[test]
    fn the_page_needs_nothing_from_elsewhere() {
        let mut rows = Rows::default();
        rows.add("sent <by all>", 5);
        let story = Story {
            scenario: "chat",
            clean: true,
            rows,
            host: Host::read(None),
            settings: Settings::from([("rate", 7.into()), ("window", ().into())]),
            charts: vec![Chart {
                title: "Delivered".into(),
                x: XAxis::Seconds,
                y_label: "messages/s".into(),
                log_y: false,
                lines: vec![Line::new("delivered", vec![(0.0, 1.0), (1.0, 2.0)])],
                marks: Vec::new(),
            }],
        };
        let html = story.html();
        for part in ["sent &lt;by all&gt;", "<svg", "rate", "cpu_model", "prefers-color-scheme"] {
            assert!(html.contains(part), "{part}");
        }
        for link in ["http:", "https:", "<script", "<link", "src=", "window"] {
            assert!(!html.contains(link), "{link}");
        }
    }
}
