//! Small charts as inline SVG, without styles and scripts.

use maud::{Markup, html};

const WIDTH: usize = 240;
const HEIGHT: usize = 48;

/// Draws a bar for each value, from left to right. `label` is the text for screen readers, and
/// `class` chooses the colour.
pub(super) fn bars(label: &str, class: &str, values: &[f64]) -> Markup {
    let max = values.iter().copied().fold(0.0, f64::max);
    let step = WIDTH as f64 / values.len().max(1) as f64;
    // A value above zero is always visible.
    let height = |value: f64| match max > 0.0 {
        true => (value / max * (HEIGHT - 2) as f64).max(if value > 0.0 { 1.0 } else { 0.0 }),
        false => 0.0,
    };
    html! {
        svg.chart.(class) viewBox={ "0 0 " (WIDTH) " " (HEIGHT) } role="img" aria-label=(label) preserveAspectRatio="none" {
            line x1="0" y1=(HEIGHT) x2=(WIDTH) y2=(HEIGHT) {}
            @for (index, value) in values.iter().enumerate() {
                @let bar_height = height(*value);
                @if bar_height > 0.0 {
                    rect x=(format!("{:.1}", index as f64 * step)) y=(format!("{:.1}", HEIGHT as f64 - bar_height))
                        width=(format!("{:.1}", (step - 1.0).max(1.0))) height=(format!("{bar_height:.1}")) {}
                }
            }
        }
    }
}
