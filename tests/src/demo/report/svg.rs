//! Drawing: text that cannot break out of its place, and the few shapes the charts need.

use std::fmt::Write as _;

/// Text as it may stand in HTML, between tags or in a quoted attribute.
#[must_use]
pub(super) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            other => escaped.push(other),
        }
    }
    escaped
}

/// A count as a coordinate. Counts here are small.
#[must_use]
pub(super) fn number(count: usize) -> f64 {
    f64::from(u32::try_from(count).unwrap_or(u32::MAX))
}

/// A drawing under way. Coordinates are pixels from the upper left corner; classes are those of
/// the style sheet.
#[derive(Debug)]
pub(super) struct Svg {
    text: String,
}

impl Svg {
    /// An empty drawing; `label` is what a screen reader says.
    #[must_use]
    pub(super) fn new(width: f64, height: f64, label: &str) -> Self {
        let label = escape(label);
        let text =
            format!("<svg viewBox=\"0 0 {width} {height}\" role=\"img\" aria-label=\"{label}\">");
        Self { text }
    }

    /// Text whose baseline begins at the point, or ends or has its middle there by class.
    pub(super) fn text(&mut self, class: &str, (x, y): (f64, f64), text: &str) {
        let text = escape(text);
        self.add(format_args!("<text class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\">{text}</text>"));
    }

    /// A straight line.
    pub(super) fn line(&mut self, class: &str, (x1, y1): (f64, f64), (x2, y2): (f64, f64)) {
        self.add(format_args!(
            "<line class=\"{class}\" x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\"/>"
        ));
    }

    /// A bar with its upper left corner at the point.
    pub(super) fn bar(&mut self, class: &str, (x, y): (f64, f64), width: f64, height: f64) {
        self.add(format_args!(
            "<rect class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" \
             height=\"{height:.1}\" rx=\"3\"/>"
        ));
    }

    /// A dot; `title` shows when it is pointed at.
    pub(super) fn dot(&mut self, class: &str, (x, y): (f64, f64), title: &str) {
        let title = escape(title);
        self.add(format_args!(
            "<circle class=\"{class}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"4\">\
             <title>{title}</title></circle>"
        ));
    }

    /// Points joined by straight lines.
    pub(super) fn trace(&mut self, class: &str, points: impl IntoIterator<Item = (f64, f64)>) {
        self.add(format_args!("<polyline class=\"trace {class}\" points=\""));
        for (x, y) in points {
            self.add(format_args!("{x:.1},{y:.1} "));
        }
        self.add(format_args!("\"/>"));
    }

    /// The finished element.
    #[must_use]
    pub(super) fn finish(mut self) -> String {
        self.text.push_str("</svg>");
        self.text
    }

    fn add(&mut self, element: std::fmt::Arguments<'_>) {
        // Writing to a String cannot fail.
        let _ = self.text.write_fmt(element);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_cannot_break_out() {
        assert_eq!(
            escape("<b title=\"x\" id='y'>&amp;</b> µ"),
            "&lt;b title=&quot;x&quot; id=&#39;y&#39;&gt;&amp;amp;&lt;/b&gt; µ"
        );
        let mut svg = Svg::new(1.0, 1.0, "\"><script>");
        svg.text("ink", (0.0, 0.0), "</text><script>");
        svg.dot("dot", (0.0, 0.0), "</title><script>");
        let svg = svg.finish();
        assert!(!svg.contains("<script>"), "{svg}");
        assert_eq!(svg.matches('<').count(), 1 + 2 + 4 + 1, "{svg}");
    }
}
