//! The rows as a table for people or as JSON for machines.

use std::fmt::Write as _;

use serde::Serialize;

use crate::check::{Check, Plan, Verdict, is_short};

/// Four columns; below each row why it is checked, and the fix if it is not fine.
pub(crate) fn table(plan: Plan, checks: &[Check]) -> String {
    let name_width = width(checks, "check", |check| &check.name);
    let value_width = width(checks, "value", |check| &check.value);
    let mut text = format!(
        "{:verdict$}  {:name_width$}  {:value_width$}  wanted\n",
        "",
        "check",
        "value",
        verdict = VERDICT_WIDTH
    );
    for check in checks {
        let Check { name, value, wanted, why, fix, .. } = check;
        let verdict = word(check.verdict);
        let indent = VERDICT_WIDTH;
        line(
            &mut text,
            &format!("{verdict:indent$}  {name:name_width$}  {value:value_width$}  {wanted}"),
        );
        line(&mut text, &format!("{:indent$}    why: {why}", ""));
        if check.verdict != Verdict::Ok {
            line(&mut text, &format!("{:indent$}    fix: {fix}", ""));
        }
    }
    let Plan { connections, shards } = plan;
    let short = checks.iter().filter(|check| check.verdict == Verdict::Short).count();
    let verdict = match short {
        0 => "this host fits".to_owned(),
        _ => format!("{short} of {} checks are short", checks.len()),
    };
    line(&mut text, &format!("\n{connections} connections on {shards} shards: {verdict}"));
    text
}

pub(crate) fn json(plan: Plan, checks: &[Check]) -> serde_json::Result<String> {
    #[derive(Serialize)]
    struct Report<'a> {
        #[serde(flatten)]
        plan: Plan,
        fits: bool,
        checks: &'a [Check],
    }
    let report = Report { plan, fits: !is_short(checks), checks };
    Ok(serde_json::to_string_pretty(&report)? + "\n")
}

fn width(checks: &[Check], title: &str, column: impl Fn(&Check) -> &String) -> usize {
    checks.iter().map(|check| column(check).len()).max().unwrap_or(0).max(title.len())
}

fn line(text: &mut String, line: &str) {
    writeln!(text, "{}", line.trim_end()).expect("a string takes everything");
}

fn word(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Ok => "ok",
        Verdict::Note => "note",
        Verdict::Short => "SHORT",
    }
}

const VERDICT_WIDTH: usize = 5;

#[cfg(test)]
mod tests {
    use super::*;

    fn checks() -> [Check; 2] {
        let check = |name: &str, verdict| Check {
            name: name.to_owned(),
            verdict,
            value: "1".to_owned(),
            wanted: "2".to_owned(),
            why: "a reason".to_owned(),
            fix: "a fix".to_owned(),
        };
        [check("one", Verdict::Ok), check("three", Verdict::Short)]
    }

    const PLAN: Plan = Plan { connections: 10, shards: 1 };

    #[test]
    fn the_table_lines_up_and_shows_the_fix_of_what_is_short() {
        let expected = "       check  value  wanted
ok     one    1      2
         why: a reason
SHORT  three  1      2
         why: a reason
         fix: a fix

10 connections on 1 shards: 1 of 2 checks are short
";
        assert_eq!(table(PLAN, &checks()), expected);
    }

    #[test]
    fn json_carries_every_field() {
        let value: serde_json::Value =
            serde_json::from_str(&json(PLAN, &checks()).unwrap()).unwrap();
        assert_eq!(value["connections"], 10);
        assert_eq!(value["fits"], false);
        assert_eq!(value["checks"][1]["verdict"], "short");
        assert_eq!(value["checks"][0]["fix"], "a fix");
    }
}
