//! Plots latency against load as an SVG file, with a chart for each workload.

use std::path::Path;

use plotters::{coord::Shift, prelude::*};

use crate::figures::{Figures, Latency, Row};

const SIZE: (u32, u32) = (900, 480);

/// Selects the side and the percentile that a line shows.
type LineSelector = (fn(&Row) -> Option<&Figures>, fn(Latency) -> f64);

type DrawResult = Result<(), Box<dyn std::error::Error>>;

pub(crate) fn write(path: &Path, rows: &[Row]) {
    let charts: Vec<_> = rows
        .chunk_by(|one, other| one.workload == other.workload)
        .collect();
    let size = (SIZE.0, SIZE.1 * charts.len() as u32);
    let root = SVGBackend::new(path, size).into_drawing_area();
    let drawn = root
        .fill(&WHITE)
        .map_err(Into::into)
        .and_then(|()| {
            let areas = root.split_evenly((charts.len(), 1));
            (areas.iter().zip(charts)).try_for_each(|(area, rows)| chart(area, rows))
        })
        .and_then(|()| Ok(root.present()?));
    if let Err(error) = drawn {
        panic!("{} is not written: {error}", path.display());
    }
}

fn chart(area: &DrawingArea<SVGBackend<'_>, Shift>, rows: &[Row]) -> DrawResult {
    let lines: [(_, _, LineSelector); 4] = [
        ("raw, p50", BLUE.mix(0.5), (raw, |it| it.p50)),
        ("raw, p99", BLUE.mix(1.0), (raw, |it| it.p99)),
        ("ours, p50", RED.mix(0.5), (ours, |it| it.p50)),
        ("ours, p99", RED.mix(1.0), (ours, |it| it.p99)),
    ];
    // A point is a rate with the latency at this rate.
    let points = |(side, percentile): LineSelector| {
        let point = move |row: &Row| {
            let latency = percentile(side(row)?.latency_us?);
            Some((row.rate? as f64, latency.max(1.0)))
        };
        rows.iter().filter_map(point).collect::<Vec<_>>()
    };
    // The axes cover the points of all lines.
    let all: Vec<_> = lines
        .iter()
        .flat_map(|(_, _, selector)| points(*selector))
        .collect();
    let max_rate = all.iter().map(|point| point.0).fold(1.0, f64::max);
    let min_latency = all.iter().map(|point| point.1).fold(f64::MAX, f64::min);
    let max_latency = all.iter().map(|point| point.1).fold(1.0, f64::max);

    let mut chart = ChartBuilder::on(area)
        .caption(rows[0].workload, ("sans-serif", 18))
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(72)
        .build_cartesian_2d(
            0.0..max_rate * 1.05,
            (min_latency * 0.8..max_latency * 1.25).log_scale(),
        )?;
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .x_desc("messages sent per second")
        .y_desc("latency in µs")
        .x_label_formatter(&|rate| format!("{rate:.0}"))
        .y_label_formatter(&|latency| format!("{latency:.0}"))
        .draw()?;
    // Each line has a dot for each measured rate.
    for (label, color, selector) in lines {
        let points = points(selector);
        if points.is_empty() {
            continue;
        }
        let dots = points.clone();
        chart
            .draw_series(LineSeries::new(points, color.stroke_width(2)))?
            .label(label)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 20, y)], color.stroke_width(2)));
        chart.draw_series(
            dots.into_iter()
                .map(|dot| Circle::new(dot, 3, color.filled())),
        )?;
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .background_style(WHITE.mix(0.8))
        .border_style(BLACK.mix(0.3))
        .draw()?;
    Ok(())
}

fn raw(row: &Row) -> Option<&Figures> {
    row.raw.as_ref()
}

fn ours(row: &Row) -> Option<&Figures> {
    Some(&row.ours)
}
