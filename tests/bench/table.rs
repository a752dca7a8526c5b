//! Figures beside their targets.

use std::io::Write;

/// One figure.
struct Row {
    scenario: &'static str,
    figure: &'static str,
    value: String,
    target: String,
    met: &'static str,
}

/// All figures of a run.
#[derive(Default)]
pub(crate) struct Table {
    rows: Vec<Row>,
}

/// Which side of a target is the good one.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Target {
    AtMost(f64),
    AtLeast(f64),
    None,
}

impl Table {
    /// Adds a figure, and says it at once.
    pub(crate) fn add(
        &mut self,
        scenario: &'static str,
        figure: &'static str,
        value: f64,
        unit: &str,
        target: Target,
    ) {
        let (target, met) = match target {
            Target::AtMost(most) => {
                (format!("≤ {}", short(most)), if value <= most { "met" } else { "NOT MET" })
            }
            Target::AtLeast(least) => {
                (format!("≥ {}", short(least)), if value >= least { "met" } else { "NOT MET" })
            }
            Target::None => (String::new(), ""),
        };
        let value = format!("{} {unit}", short(value));
        let row = Row { scenario, figure, value, target, met };
        // Nobody to tell if stderr is closed.
        drop(writeln!(std::io::stderr(), "  {}: {} {}", row.figure, row.value, row.met));
        self.rows.push(row);
    }

    /// The table, in Markdown.
    pub(crate) fn print(&self, out: &mut impl Write) -> std::io::Result<()> {
        writeln!(
            out,
            "| {:<34} | {:<44} | {:>18} | {:>9} | {:<7} |",
            "scenario", "figure", "measured", "target", ""
        )?;
        writeln!(
            out,
            "|{}|{}|{}:|{}:|{}|",
            "-".repeat(36),
            "-".repeat(46),
            "-".repeat(19),
            "-".repeat(10),
            "-".repeat(9)
        )?;
        for Row { scenario, figure, value, target, met } in &self.rows {
            writeln!(out, "| {scenario:<34} | {figure:<44} | {value:>18} | {target:>9} | {met:<7} |")?;
        }
        Ok(())
    }
}

/// A number with three digits or so.
fn short(value: f64) -> String {
    match value.abs() {
        v if v >= 100.0 => {
            let text = format!("{value:.0}");
            let mut out = String::new();
            for (index, digit) in text.chars().enumerate() {
                if index > 0 && (text.len() - index).is_multiple_of(3) {
                    out.push(' ');
                }
                out.push(digit);
            }
            out
        }
        v if v >= 10.0 || v.fract() == 0.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}
