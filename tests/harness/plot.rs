//! Pictures, as SVG.

use std::ops::Range;
use std::path::Path;

use plotters::coord::Shift;
use plotters::prelude::*;

use crate::figures::Times;

/// How many nines of a distribution are shown: beyond 99.9 % a level has too few orders.
const NINES: f64 = 3.0;
const FONT: (&str, u32) = ("sans-serif", 14);

/// Its name and its points.
pub type Line = (String, Vec<(f64, f64)>);
type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// Lines of one chart; on an axis of powers, the values are logarithms.
pub struct Chart {
    title: String,
    x: Axis,
    y: Axis,
    lines: Vec<Line>,
}

struct Axis {
    title: &'static str,
    range: Range<f64>,
    label: fn(&f64) -> String,
}

/// The latency of each level, from the median to the tail.
///
/// # Errors
/// When the file can't be written.
pub fn distributions(file: &Path, levels: &[(String, Times)]) -> Result<(), String> {
    let lines: Vec<Line> = levels
        .iter()
        .map(|(name, times)| (name.clone(), distribution(times)))
        .collect();
    let x = Axis {
        title: "percent of the orders",
        range: 0.0..NINES,
        label: |nines| format!("{:.1}", percent(*nines)),
    };
    let chart = Chart {
        title: "POST to settled".into(),
        x,
        y: powers_of_ten("ms", &lines),
        lines,
    };
    save(file, &[chart])
}

/// What happened over time: rates, and below them the p99 of the orders placed then.
pub struct Course {
    /// What it was.
    pub title: String,
    /// Seconds, and how many a second.
    pub rates: Vec<Line>,
    /// Seconds, and milliseconds.
    pub p99: Vec<(f64, f64)>,
}

/// Each course with its rates and its p99.
///
/// # Errors
/// When the file can't be written.
pub fn over_time(file: &Path, courses: Vec<Course>) -> Result<(), String> {
    let charts: Vec<Chart> = courses.into_iter().flat_map(Course::charts).collect();
    save(file, &charts)
}

impl Course {
    fn charts(self) -> [Chart; 2] {
        let points = || self.rates.iter().flat_map(|(_, points)| points);
        let end = points()
            .chain(&self.p99)
            .map(|(second, _)| *second)
            .fold(1.0, f64::max);
        let most = points().map(|(_, count)| *count).fold(1.0, f64::max);
        let seconds = || Axis {
            title: "seconds",
            range: 0.0..end,
            label: |second| format!("{second:.0}"),
        };
        let y = Axis {
            title: "orders/s",
            range: 0.0..most * 1.1,
            label: |count| format!("{count:.0}"),
        };
        let powers = self
            .p99
            .iter()
            .map(|(second, p99)| (*second, p99.log10()))
            .collect();
        let p99 = vec![(
            "POST to settled, p99 of the orders placed then".to_string(),
            powers,
        )];
        let lower = Chart {
            title: String::new(),
            x: seconds(),
            y: powers_of_ten("ms", &p99),
            lines: p99,
        };
        [
            Chart {
                title: self.title,
                x: seconds(),
                y,
                lines: self.rates,
            },
            lower,
        ]
    }
}

fn distribution(times: &Times) -> Vec<(f64, f64)> {
    let nines = (0..=60).map(|step| NINES * f64::from(step) / 60.0);
    nines
        .map(|nines| (nines, times.at(percent(nines)).log10()))
        .collect()
}

/// 0 is 0 %, 1 is 90 %, 2 is 99 %.
fn percent(nines: f64) -> f64 {
    100.0 * (1.0 - 0.1f64.powf(nines))
}

/// Lines on two axes of powers of ten.
pub fn by_powers(title: &str, x: &'static str, y: &'static str, lines: Vec<Line>) -> Chart {
    let logarithms = |(name, points): Line| {
        let points = points.into_iter().map(|(x, y)| (x.log10(), y.log10()));
        (name, points.collect())
    };
    let lines: Vec<Line> = lines.into_iter().map(logarithms).collect();
    let points = lines.iter().flat_map(|(_, points)| points);
    Chart {
        title: title.into(),
        x: axis_of_powers(x, points.map(|(x, _)| *x).collect()),
        y: powers_of_ten(y, &lines),
        lines,
    }
}

fn powers_of_ten(title: &'static str, lines: &[Line]) -> Axis {
    let points = lines.iter().flat_map(|(_, points)| points);
    axis_of_powers(title, points.map(|(_, y)| *y).collect())
}

fn axis_of_powers(title: &'static str, values: Vec<f64>) -> Axis {
    let values = || values.iter().copied().filter(|value| value.is_finite());
    let (least, most) = (values().fold(3.0, f64::min), values().fold(1.0, f64::max));
    Axis {
        title,
        range: least.floor()..most.ceil(),
        label: |power| format!("{:.0}", 10f64.powf(*power)),
    }
}

/// Charts, one below the other.
///
/// # Errors
/// When the file can't be written.
pub fn save(file: &Path, charts: &[Chart]) -> Result<(), String> {
    let draw = || {
        let area = SVGBackend::new(file, (900, 420 * charts.len() as u32)).into_drawing_area();
        area.fill(&WHITE)?;
        let parts = area.split_evenly((charts.len(), 1));
        parts
            .iter()
            .zip(charts)
            .try_for_each(|(part, chart)| draw(part, chart))?;
        area.present()
    };
    draw().map_err(|error| format!("{}: {error}", file.display()))
}

fn draw(area: &Area<'_>, chart: &Chart) -> Result<(), DrawingAreaErrorKind<std::io::Error>> {
    let Chart { title, x, y, lines } = chart;
    let mut builder = ChartBuilder::on(area);
    builder
        .caption(title, FONT)
        .margin(12)
        .margin_right(30)
        .x_label_area_size(40)
        .y_label_area_size(60);
    let mut context = builder.build_cartesian_2d(x.range.clone(), y.range.clone())?;
    let mut mesh = context.configure_mesh();
    mesh.x_desc(x.title)
        .y_desc(y.title)
        .x_label_formatter(&x.label)
        .y_label_formatter(&y.label);
    mesh.max_light_lines(0).draw()?;
    for (number, (name, points)) in lines.iter().enumerate() {
        let color = Palette99::pick(number).to_rgba();
        let shown = points.iter().copied().filter(|(_, y)| y.is_finite());
        let line = context.draw_series(LineSeries::new(shown, color.stroke_width(2)))?;
        line.label(name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], color.stroke_width(2)));
    }
    let mut labels = context.configure_series_labels();
    labels
        .position(SeriesLabelPosition::UpperLeft)
        .background_style(WHITE)
        .border_style(BLACK.mix(0.3))
        .draw()
}
