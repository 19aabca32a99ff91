//! Line charts as inline SVG. Colours come from the style sheet of the page, so that they follow
//! its light or dark scheme; a point tells its value in a native tooltip.

use std::fmt::Write as _;

/// A chart of lines over one common axis.
#[derive(Clone, Debug)]
pub struct Chart {
    pub title: String,
    pub x: XAxis,
    /// What the values are, with their unit.
    pub y_label: String,
    /// Powers of ten at equal distances; for latencies. Values below `LOG_MIN` sit on the axis.
    pub log_y: bool,
    pub lines: Vec<Line>,
    /// A moment to point out: (x, what happened).
    pub marks: Vec<(f64, String)>,
}

/// How the horizontal axis is divided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum XAxis {
    /// Seconds from zero.
    Seconds,
    /// Quantiles: each further nine takes the same room.
    Quantile,
}

/// One line; at most [`LINES_MAX`] of them have a colour of their own.
#[derive(Clone, Debug)]
pub struct Line {
    pub name: String,
    pub points: Vec<(f64, f64)>,
}

struct Scale {
    x: XAxis,
    x_max: f64,
    y_min: f64,
    y_max: f64,
    log_y: bool,
}

impl Chart {
    /// An `svg` element; empty when there is nothing to draw.
    pub fn svg(&self) -> String {
        let lines: Vec<Line> = self.lines.iter().map(Line::thinned).collect();
        let Some(scale) = Scale::of(self, &lines) else { return String::new() };
        let mut out = String::new();
        let label = escape(&self.title);
        put(
            &mut out,
            format_args!(
                "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{label}\">\n"
            ),
        );
        self.put_axes(&scale, &mut out);
        for (at, what) in &self.marks {
            let x = scale.x(*at);
            put(
                &mut out,
                format_args!(
                    "<line class=\"mark\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{TOP}\" y2=\"{BOTTOM}\"/>\
                     <text class=\"mark\" x=\"{:.1}\" y=\"{}\">{}</text>\n",
                    x + 4.0,
                    TOP + 11.0,
                    escape(what)
                ),
            );
        }
        for (number, line) in lines.iter().enumerate() {
            put_line(line, number % LINES_MAX, &scale, &self.y_label, &mut out);
        }
        out.push_str("</svg>\n");
        out
    }

    /// Names of the lines with their colours; empty for a single one, which the title names.
    pub fn legend(&self) -> String {
        if self.lines.len() < 2 {
            return String::new();
        }
        let names = self.lines.iter().enumerate().map(|(number, line)| {
            format!("<span class=\"key s{}\">{}</span>", number % LINES_MAX, escape(&line.name))
        });
        format!("<p class=\"legend\">{}</p>\n", names.collect::<String>())
    }

    fn put_axes(&self, scale: &Scale, out: &mut String) {
        for value in scale.y_ticks() {
            let y = scale.y(value);
            put(
                out,
                format_args!(
                    "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{RIGHT}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>\
                     <text class=\"tick end\" x=\"{}\" y=\"{:.1}\">{}</text>\n",
                    LEFT - 6.0,
                    y + 4.0,
                    short(value)
                ),
            );
        }
        for (value, text) in scale.x_ticks() {
            let x = scale.x(value);
            put(
                out,
                format_args!(
                    "<text class=\"tick mid\" x=\"{x:.1}\" y=\"{}\">{text}</text>\n",
                    BOTTOM + 16.0
                ),
            );
        }
        put(
            out,
            format_args!(
                "<line class=\"axis\" x1=\"{LEFT}\" x2=\"{RIGHT}\" y1=\"{BOTTOM}\" y2=\"{BOTTOM}\"/>\
                 <text class=\"tick\" x=\"4\" y=\"11\">{}</text>\n",
                escape(&self.y_label)
            ),
        );
    }
}

impl Line {
    pub fn new(name: &str, points: Vec<(f64, f64)>) -> Self {
        Self { name: name.to_owned(), points }
    }

    /// At most [`POINTS_MAX`] points, the highest of each group: a peak is never hidden.
    fn thinned(&self) -> Self {
        let group = self.points.len().div_ceil(POINTS_MAX).max(1);
        let highest = |points: &[(f64, f64)]| {
            points.iter().copied().max_by(|a, b| a.1.total_cmp(&b.1)).expect("chunks are not empty")
        };
        Self { name: self.name.clone(), points: self.points.chunks(group).map(highest).collect() }
    }
}

impl Scale {
    /// Of finite values only: whoever draws leaves out what is not known.
    fn of(chart: &Chart, lines: &[Line]) -> Option<Self> {
        let values = || lines.iter().flat_map(|line| &line.points);
        values().next()?;
        let x_max = values().map(|point| point.0).fold(0.0, f64::max);
        let y_max = values().map(|point| point.1).fold(0.0, f64::max);
        if chart.log_y {
            let low = values().map(|point| point.1).fold(y_max, f64::min).max(LOG_MIN);
            let y_min = 10f64.powf(low.log10().floor());
            let y_max = 10f64.powf(y_max.max(y_min * 1.01).log10().ceil());
            return Some(Self { x: chart.x, x_max, y_min, y_max, log_y: true });
        }
        let y_max = nice_above(y_max);
        Some(Self { x: chart.x, x_max, y_min: 0.0, y_max, log_y: false })
    }

    fn x(&self, value: f64) -> f64 {
        let (value, max) = match self.x {
            XAxis::Seconds => (value, self.x_max.max(f64::MIN_POSITIVE)),
            XAxis::Quantile => (nines(value), nines(self.x_max).max(1.0)),
        };
        LEFT + value / max * (RIGHT - LEFT)
    }

    fn y(&self, value: f64) -> f64 {
        let share = if self.log_y {
            (value.max(self.y_min) / self.y_min).log10() / (self.y_max / self.y_min).log10()
        } else {
            value / self.y_max
        };
        BOTTOM - share * (BOTTOM - TOP)
    }

    fn y_ticks(&self) -> Vec<f64> {
        if self.log_y {
            let decades = std::iter::successors(Some(self.y_min), |value| Some(value * 10.0));
            return decades.take_while(|&value| value <= self.y_max * 1.01).collect();
        }
        (0..=TICKS).map(|tick| self.y_max * f64::from(tick) / f64::from(TICKS)).collect()
    }

    fn x_ticks(&self) -> Vec<(f64, String)> {
        match self.x {
            XAxis::Seconds => {
                let step = nice_above(self.x_max / 6.0);
                (0..)
                    .map(|tick| f64::from(tick) * step)
                    .take_while(|&at| at <= self.x_max)
                    .map(|at| (at, format!("{} s", short(at))))
                    .collect()
            }
            XAxis::Quantile => [0.0, 0.5, 0.9, 0.99, 0.999, 0.9999, 0.99999, 0.999_999]
                .into_iter()
                .filter(|&at| at <= self.x_max)
                .map(|at| {
                    (at, if at == 0.0 { "min".into() } else { format!("p{}", short(at * 100.0)) })
                })
                .collect(),
        }
    }
}

fn put_line(line: &Line, colour: usize, scale: &Scale, unit: &str, out: &mut String) {
    let at = |point: &(f64, f64)| format!("{:.1},{:.1}", scale.x(point.0), scale.y(point.1));
    let points: Vec<String> = line.points.iter().map(at).collect();
    put(
        out,
        format_args!("<polyline class=\"line s{colour}\" points=\"{}\"/>\n", points.join(" ")),
    );
    for point in &line.points {
        let place = match scale.x {
            XAxis::Seconds => format!("{} s", short(point.0)),
            XAxis::Quantile => format!("p{}", short(point.0 * 100.0)),
        };
        put(
            out,
            format_args!(
                "<circle class=\"point s{colour}\" cx=\"{:.1}\" cy=\"{:.1}\" r=\"5\"><title>{}, \
                 {place}: {} ({})</title></circle>\n",
                scale.x(point.0),
                scale.y(point.1),
                escape(&line.name),
                short(point.1),
                escape(unit)
            ),
        );
    }
}

/// 0.9 -> 1, 0.99 -> 2.
fn nines(quantile: f64) -> f64 {
    -(1.0 - quantile).max(1e-9).log10()
}

/// The next of 1, 2, 2.5, 5 times a power of ten.
fn nice_above(value: f64) -> f64 {
    if value <= 0.0 {
        return 1.0;
    }
    let power = 10f64.powf(value.log10().floor());
    [1.0, 2.0, 2.5, 5.0, 10.0]
        .into_iter()
        .map(|step| step * power)
        .find(|&step| step >= value * 0.999_999)
        .unwrap_or(10.0 * power)
}

/// Few digits: `1250000` is `1.25M`.
fn short(value: f64) -> String {
    let (value, suffix) = match value {
        v if v >= 1e9 => (v / 1e9, "G"),
        v if v >= 1e6 => (v / 1e6, "M"),
        v if v >= 1e4 => (v / 1e3, "k"),
        v => (v, ""),
    };
    let text = if value >= 99.0 { format!("{value:.4}") } else { format!("{value:.3}") };
    let text = text.trim_end_matches('0').trim_end_matches('.');
    format!("{text}{suffix}")
}

/// Text for an element or a quoted attribute.
pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

fn put(out: &mut String, text: std::fmt::Arguments<'_>) {
    out.write_fmt(text).expect("writing to a string does not fail");
}

/// Colours of the style sheet: `s0` to `s4`.
pub const LINES_MAX: usize = 5;
const POINTS_MAX: usize = 240;
const TICKS: u32 = 5;
/// A microsecond, in milliseconds.
const LOG_MIN: f64 = 1e-3;
const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 280.0;
const LEFT: f64 = 52.0;
const RIGHT: f64 = 708.0;
const TOP: f64 = 22.0;
const BOTTOM: f64 = 254.0;

#[cfg(test)]
mod tests {
    use super::*;

    fn chart(points: Vec<(f64, f64)>, log_y: bool) -> Chart {
        Chart {
            title: "a < b".into(),
            x: XAxis::Seconds,
            y_label: "ms".into(),
            log_y,
            lines: vec![Line::new("p50", points.clone()), Line::new("p99", points)],
            marks: vec![(1.0, "kill".into())],
        }
    }

    #[test]
    fn lines_stay_within_the_picture() {
        for log_y in [false, true] {
            let points: Vec<(f64, f64)> =
                (0..1_000).map(|x| (f64::from(x), f64::from(x * x))).collect();
            let svg = chart(points, log_y).svg();
            assert!(svg.contains("a &lt; b") && svg.contains("kill"));
            assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
            let drawn = svg.split("points=\"").nth(1).unwrap().split('"').next().unwrap();
            assert!(drawn.split(' ').count() <= POINTS_MAX);
            for point in drawn.split(' ') {
                let (x, y) = point.split_once(',').unwrap();
                let (x, y): (f64, f64) = (x.parse().unwrap(), y.parse().unwrap());
                assert!((LEFT..=RIGHT + 0.1).contains(&x) && (TOP - 0.1..=BOTTOM).contains(&y));
            }
        }
    }

    #[test]
    fn a_peak_survives_thinning() {
        let mut points: Vec<(f64, f64)> = (0..5_000).map(|x| (f64::from(x), 1.0)).collect();
        points[2_345].1 = 50.0;
        assert!(Line::new("p", points).thinned().points.iter().any(|point| point.1 == 50.0));
    }

    #[test]
    fn nothing_gives_nothing() {
        assert_eq!(chart(Vec::new(), true).svg(), "");
        assert!(!chart(vec![(0.0, 0.0)], true).svg().contains("NaN"));
    }

    #[test]
    fn numbers_are_short() {
        assert_eq!(short(1_250_000.0), "1.25M");
        assert_eq!(short(0.0), "0");
        assert_eq!(short(99.99), "99.99");
        assert_eq!(nice_above(0.3), 0.5);
        assert_eq!(nice_above(1_000.0), 1_000.0);
    }
}
