//! Statistics in the text format of Prometheus, version 0.0.4.
//!
//! # Invariants
//!
//! 1. Each metric has one `HELP` and one `TYPE` line, and all its samples follow them.
//! 2. A page can be parsed, whatever the names and values of its labels are.

use std::fmt::{self, Write};

/// Statistics as a page that Prometheus scrapes. [`Stats::prometheus`](crate::Stats::prometheus) and the methods of the
/// same name return it.
///
/// Its `Display` is the page, to be served with the type `text/plain; version=0.0.4`. A page may name each metric only
/// once, so join the pages of several connections with [`and`](Self::and) or `collect`. Labels distinguish the
/// connections.
///
/// ```
/// use narrows::{Prometheus, SharedMemoryStream};
/// let (a, b) = SharedMemoryStream::pair()?;
/// let ends = [("near", a), ("far", b)];
/// let page: Prometheus = ends.iter().map(|(name, end)| end.stats().prometheus(&[("end", name)])).collect();
/// assert_eq!(page.to_string().matches("# TYPE narrows_sleeps_total counter").count(), 1);
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Clone, Debug, Default)]
#[must_use = "the page is its Display"]
pub struct Prometheus {
    samples: Vec<Sample>,
}

impl Prometheus {
    /// Joins two pages into one.
    ///
    /// ```
    /// let (a, b) = narrows::SharedMemoryStream::pair()?;
    /// let page = a.stats().prometheus(&[("end", "near")]).and(b.stats().prometheus(&[("end", "far")]));
    /// assert!(page.to_string().contains("end=\"far\""));
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn and(mut self, other: Self) -> Self {
        self.samples.extend(other.samples);
        self
    }

    /// Adds a sample. Of two labels with the same name the first is kept.
    pub(crate) fn add(
        &mut self,
        family: &'static Family,
        own: Option<(&str, &str)>,
        labels: &[(&str, &str)],
        value: Value,
    ) {
        let mut names: Vec<String> = Vec::new();
        let mut text = String::new();
        let theirs = labels.iter().map(|(name, value)| (legal(name), *value));
        for (name, value) in own.into_iter().map(|(name, value)| (name.to_owned(), value)).chain(theirs) {
            if !names.contains(&name) {
                let comma = if names.is_empty() { "" } else { "," };
                let _never_fails = write!(text, "{comma}{name}=\"{}\"", Escaped(value));
                names.push(name);
            }
        }
        self.samples.push(Sample { family, labels: text, value });
    }
}

impl FromIterator<Self> for Prometheus {
    fn from_iter<I: IntoIterator<Item = Self>>(pages: I) -> Self {
        Self { samples: pages.into_iter().flat_map(|page| page.samples).collect() }
    }
}

impl fmt::Display for Prometheus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut written: Vec<&str> = Vec::new();
        for Sample { family, .. } in &self.samples {
            if written.contains(&family.name) {
                continue;
            }
            written.push(family.name);
            writeln!(f, "# HELP {} {}", family.name, family.help)?;
            writeln!(f, "# TYPE {} {}", family.name, family.kind)?;
            for sample in self.samples.iter().filter(|sample| sample.family.name == family.name) {
                sample.fmt(f)?;
            }
        }
        Ok(())
    }
}

/// A metric: its name, its type and its description.
#[derive(Debug)]
pub(crate) struct Family {
    name: &'static str,
    kind: &'static str,
    help: &'static str,
}

impl Family {
    /// Creates a metric that only grows.
    pub(crate) const fn counter(name: &'static str, help: &'static str) -> Self {
        Self { name, kind: "counter", help }
    }

    /// Creates a metric that goes up and down.
    pub(crate) const fn gauge(name: &'static str, help: &'static str) -> Self {
        Self { name, kind: "gauge", help }
    }
}

/// The value of a sample.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Value {
    /// An integer.
    Count(u64),
    /// A ratio, in thousandths.
    Thousandths(u32),
}

#[derive(Clone, Debug)]
struct Sample {
    family: &'static Family,
    labels: String,
    value: Value,
}

impl fmt::Display for Sample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.family.name)?;
        if !self.labels.is_empty() {
            write!(f, "{{{}}}", self.labels)?;
        }
        match self.value {
            Value::Count(count) => writeln!(f, " {count}"),
            Value::Thousandths(part) => writeln!(f, " {}.{:03}", part / 1000, part % 1000),
        }
    }
}

/// A label's value. Its `Display` escapes backslash, quote and line feed, and leaves all other characters unchanged.
struct Escaped<'a>(&'a str);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.chars().try_for_each(|c| match c {
            '\\' => f.write_str("\\\\"),
            '"' => f.write_str("\\\""),
            '\n' => f.write_str("\\n"),
            c => f.write_char(c),
        })
    }
}

/// Returns a legal label name: letters, digits and underscores, no digit first. Other characters become underscores.
fn legal(name: &str) -> String {
    let first = if name.is_empty() || name.starts_with(|c: char| c.is_ascii_digit()) { "_" } else { "" };
    let rest = name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' });
    first.chars().chain(rest).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    static MANY: Family = Family::counter("many_total", "Many.");
    static PART: Family = Family::gauge("part_ratio", "A part.");

    fn page(own: Option<(&str, &str)>, labels: &[(&str, &str)]) -> Prometheus {
        let mut page = Prometheus::default();
        page.add(&MANY, own, labels, Value::Count(u64::MAX));
        page.add(&PART, own, labels, Value::Thousandths(7));
        page
    }

    #[test]
    fn a_page_names_each_metric_once_and_keeps_its_samples_together() {
        let all: Prometheus =
            [("a", "1"), ("a", "2")].map(|label| page(None, &[label])).into_iter().collect();
        let expected = "# HELP many_total Many.\n# TYPE many_total counter\n\
            many_total{a=\"1\"} 18446744073709551615\nmany_total{a=\"2\"} 18446744073709551615\n\
            # HELP part_ratio A part.\n# TYPE part_ratio gauge\n\
            part_ratio{a=\"1\"} 0.007\npart_ratio{a=\"2\"} 0.007\n";
        assert_eq!(all.to_string(), expected);
        assert_eq!(page(None, &[("a", "1")]).and(page(None, &[("a", "2")])).to_string(), expected);
        assert_eq!(Prometheus::default().to_string(), "");
    }

    #[test]
    fn values_are_escaped_and_names_made_legal() {
        let labels =
            [("a b", "\\ \" \n {},= \u{e4}"), ("9", ""), ("", "e"), ("a-b", "again"), ("own", "theirs")];
        let text = page(Some(("own", "ours")), &labels).to_string();
        let line = text.lines().nth(2).expect("a sample");
        let expected = r#"many_total{own="ours",a_b="\\ \" \n {},= ä",_9="",_="e"} 18446744073709551615"#;
        assert_eq!(line, expected);
        assert!(page(None, &[]).to_string().contains("\npart_ratio 0.007\n"), "no braces without labels");
    }
}
