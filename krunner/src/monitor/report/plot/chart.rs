//! Draws the chart as SVG with `plotters`. Pure.
//!
//! The colours are for a light background. The style sheet replaces each one for a dark background, selected by attribute
//! (`[fill="#0072B2"]`). Process names are in the legend, not in the image.

use std::iter;

use plotters::chart::ChartContext;
use plotters::coord::types::RangedCoordf64;
use plotters::prelude::{
    Cartesian2d, ChartBuilder, Color as _, DashedLineSeries, IntoDrawingArea as _, IntoFont as _, LineSeries, Polygon,
    RGBColor, SVGBackend, Text, TextStyle,
};
use thiserror::Error;

use super::series::{MAX_LAYERS, Series};
use crate::monitor::model::units::grouped;

/// Size in SVG units; the image is as wide as the page.
const SIZE: (u32, u32) = (900, 400);

/// Space above the limit, for its label.
const HEADROOM: f64 = 1.1;

/// Colours of the process layers, distinguishable with colour blindness (Okabe and Ito).
pub(super) const LAYERS: [RGBColor; MAX_LAYERS] = [
    RGBColor(0x00, 0x72, 0xB2),
    RGBColor(0xE6, 0x9F, 0x00),
    RGBColor(0x00, 0x9E, 0x73),
    RGBColor(0xCC, 0x79, 0xA7),
    RGBColor(0x56, 0xB4, 0xE9),
];
pub(super) const REST: RGBColor = RGBColor(0xC4, 0xC8, 0xCE);
pub(super) const INK: RGBColor = RGBColor(0x22, 0x22, 0x22);
pub(super) const GRID: RGBColor = RGBColor(0xDD, 0xDD, 0xDD);
pub(super) const LIMIT: RGBColor = RGBColor(0xB7, 0x1C, 0x1C);

const MIB: f64 = 1_048_576.0;

/// The chart could not be drawn.
#[derive(Debug, Error)]
#[error("the chart cannot be drawn: {0}")]
pub(crate) struct ChartError(String);

type Chart<'a, 'b> = ChartContext<'a, SVGBackend<'b>, Cartesian2d<RangedCoordf64, RangedCoordf64>>;

/// Renders the chart.
pub(super) fn svg(series: &Series) -> Result<String, ChartError> {
    let mut svg = String::new();
    draw(series, &mut svg).map_err(|error| ChartError(error.to_string()))?;
    Ok(svg)
}

/// `plotters` has an error type for each kind of image.
type Drawn = Result<(), Box<dyn std::error::Error + Send + Sync>>;

fn draw(series: &Series, svg: &mut String) -> Drawn {
    let area = SVGBackend::with_string(svg, SIZE).into_drawing_area();
    let first_s = series.times_s.first().copied().unwrap_or(0.0);
    // Leaves space between the line of the kill and the edge.
    let end_s = -first_s * 0.03;
    let mut chart = ChartBuilder::on(&area)
        .margin(10)
        .x_label_area_size(48)
        .y_label_area_size(80)
        .build_cartesian_2d(first_s..end_s, 0.0..mib(series.max_bytes()).max(1.0) * HEADROOM)?;
    draw_axes(&mut chart)?;
    draw_layers(&mut chart, series)?;
    let usage = points(series, &series.usage_bytes);
    chart.draw_series(LineSeries::new(usage, INK.stroke_width(2)))?;
    draw_limit(&mut chart, series)?;
    draw_kill(&mut chart)?;
    area.present()?;
    Ok(())
}

fn draw_axes(chart: &mut Chart<'_, '_>) -> Drawn {
    let seconds =
        |at_s: &f64| if at_s.abs() < 1e-9 { "0".to_owned() } else { format!("{}", (at_s * 100.0).round() / 100.0) };
    let mut mesh = chart.configure_mesh();
    mesh.disable_x_mesh()
        .bold_line_style(GRID)
        .light_line_style(GRID.mix(0.0))
        .max_light_lines(1)
        .axis_style(INK)
        .label_style(text(15))
        .x_labels(9)
        .y_labels(6)
        .x_label_formatter(&seconds)
        .y_label_formatter(&|mib| in_mib(*mib))
        .x_desc("seconds since the kill")
        .axis_desc_style(text(15))
        .draw()?;
    Ok(())
}

/// Draws the layers from the bottom up.
fn draw_layers(chart: &mut Chart<'_, '_>, series: &Series) -> Drawn {
    let mut below = vec![0; series.times_s.len()];
    for (index, layer) in series.layers.iter().enumerate() {
        let above: Vec<u64> = below.iter().zip(&layer.bytes).map(|(below, bytes)| below + bytes).collect();
        let colour = if layer.is_rest { REST } else { LAYERS[index] };
        let outline: Vec<(f64, f64)> = points(series, &above).chain(points(series, &below).rev()).collect();
        chart.draw_series(iter::once(Polygon::new(outline, colour.filled())))?;
        below = above;
    }
    Ok(())
}

/// Draws the limit up to the right edge, labelled with its last value.
fn draw_limit(chart: &mut Chart<'_, '_>, series: &Series) -> Drawn {
    let known = |(at_s, bytes): (&f64, &Option<u64>)| Some((*at_s, mib((*bytes)?)));
    let mut line: Vec<(f64, f64)> = series.times_s.iter().zip(&series.limit_bytes).filter_map(known).collect();
    let Some(last) = line.last().copied() else { return Ok(()) };
    line.push((chart.x_range().end, last.1));
    let first_s = line[0].0;
    chart.draw_series(LineSeries::new(line, LIMIT.stroke_width(2)))?;
    draw_label(chart, &format!("limit {}", in_mib(last.1)), (first_s, last.1), (6, -20))
}

/// Draws a dashed line, labelled at the top.
fn draw_kill(chart: &mut Chart<'_, '_>) -> Drawn {
    let top = chart.y_range().end;
    let line = DashedLineSeries::new([(0.0, 0.0), (0.0, top)], 6, 4, LIMIT.stroke_width(2));
    chart.draw_series(line)?;
    draw_label(chart, "OOM kill", (0.0, top), (-70, 2))
}

fn draw_label(chart: &mut Chart<'_, '_>, label: &str, (at_s, mib): (f64, f64), offset: (i32, i32)) -> Drawn {
    let (x, y) = chart.backend_coord(&(at_s, mib));
    let area = chart.plotting_area().strip_coord_spec();
    let (left, top) = area.get_base_pixel();
    area.draw(&Text::new(label.to_owned(), (x - left + offset.0, y - top + offset.1), text(15).color(&LIMIT)))?;
    Ok(())
}

fn text(size: u32) -> TextStyle<'static> {
    ("sans-serif", size).into_font().color(&INK)
}

fn points<'a>(series: &'a Series, bytes: &'a [u64]) -> impl DoubleEndedIterator<Item = (f64, f64)> + 'a {
    series.times_s.iter().copied().zip(bytes.iter().map(|bytes| mib(*bytes)))
}

#[expect(clippy::cast_precision_loss, reason = "a point in a chart")]
fn mib(bytes: u64) -> f64 {
    bytes as f64 / MIB
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a label, and never negative")]
fn in_mib(mib: f64) -> String {
    if mib > 0.0 && mib < 9.5 { format!("{mib:.1}m") } else { format!("{}m", grouped(mib.round() as u64)) }
}
