//! What was measured: a table on the terminal; `results.json`, raw samples as CSV beside it.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::level::Sample;
use crate::targets::{self, Comparison};
use crate::usage::Cost;

/// Problems of one kind that are printed; all are counted.
const SHOWN: usize = 10;

/// One number.
pub struct Figure {
    section: &'static str,
    run: String,
    name: String,
    unit: &'static str,
    value: f64,
}

/// All that was found out.
pub struct Report {
    folder: PathBuf,
    machine: Value,
    figures: Vec<Figure>,
    notes: Vec<String>,
    problems: Vec<String>,
    /// Raw samples by section, as CSV.
    samples: BTreeMap<&'static str, String>,
}

/// The figures of one run of a section are added here.
pub struct Run<'r> {
    report: &'r mut Report,
    section: &'static str,
    name: String,
}

impl Run<'_> {
    /// A figure; what has no value is left out.
    pub fn add(&mut self, name: &str, unit: &'static str, value: f64) {
        if value.is_finite() {
            let (section, run, name) = (self.section, self.name.clone(), name.to_string());
            self.report.figures.push(Figure {
                section,
                run,
                name,
                unit,
                value,
            });
        }
    }

    /// What the work has cost.
    pub fn add_all(&mut self, costs: impl IntoIterator<Item = Cost>) {
        costs
            .into_iter()
            .for_each(|(name, unit, value)| self.add(&name, unit, value));
    }
}

impl Report {
    /// Into a folder that holds the last run only.
    ///
    /// # Errors
    /// When it can't be made.
    pub fn create(folder: &Path, machine: Value) -> Result<Report, String> {
        let _ = fs::remove_dir_all(folder);
        fs::create_dir_all(folder).map_err(|error| format!("{}: {error}", folder.display()))?;
        println!("{machine}");
        let (figures, notes, problems, samples) = (vec![], vec![], vec![], BTreeMap::new());
        Ok(Report {
            folder: folder.into(),
            machine,
            figures,
            notes,
            problems,
            samples,
        })
    }

    /// Where figures of this run are added.
    pub fn run(&mut self, section: &'static str, name: &str) -> Run<'_> {
        Run {
            report: self,
            section,
            name: name.to_string(),
        }
    }

    /// What the figures alone do not say; printed at once.
    pub fn note(&mut self, note: String) {
        println!("  {note}");
        self.notes.push(note);
    }

    /// What must not be; printed at once.
    pub fn problem(&mut self, problem: String) {
        if self.problems.len() < SHOWN {
            println!("WRONG: {problem}");
        }
        self.problems.push(problem);
    }

    /// A file of this name.
    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// The value of a figure, if it was measured.
    pub fn value(&self, (section, run, name): (&str, &str, &str)) -> Option<f64> {
        let found = self
            .figures
            .iter()
            .find(|f| f.section == section && f.run == run && f.name == name);
        found.map(|figure| figure.value)
    }

    /// Keeps raw samples.
    pub fn samples(&mut self, section: &'static str, run: &str, samples: &[Sample]) {
        let csv = self
            .samples
            .entry(section)
            .or_insert_with(|| "run,start_us,answered_us,settled_us\n".to_string());
        for Sample {
            start,
            answered,
            settled,
            ..
        } in samples
        {
            let (start, answered, settled) =
                (start.as_micros(), answered.as_micros(), settled.as_micros());
            let _ = writeln!(csv, "{run},{start},{answered},{settled}");
        }
    }

    /// Prints a section's figures: a line each, a column for every run.
    pub fn print(&self, section: &str) {
        let figures: Vec<&Figure> = self
            .figures
            .iter()
            .filter(|figure| figure.section == section)
            .collect();
        let runs = distinct(figures.iter().map(|figure| figure.run.as_str()));
        let head: String = runs.iter().map(|run| format!(" {run:>12}")).collect();
        println!("{:<42}{head}", "");
        for name in distinct(figures.iter().map(|figure| figure.name.as_str())) {
            let its: Vec<&&Figure> = figures
                .iter()
                .filter(|figure| figure.name == name)
                .collect();
            let cell = |run| {
                its.iter()
                    .find(|figure| figure.run == run)
                    .map_or("".into(), |f| readable(f.value))
            };
            let cells: String = runs
                .iter()
                .map(|run| format!(" {:>1$}", cell(*run), run.chars().count().max(12)))
                .collect();
            println!("{:<42}{cells}", format!("{name} {}", its[0].unit));
        }
    }

    /// Writes all files.
    ///
    /// # Errors
    /// When one can't be written.
    pub fn save(&self) -> Result<(), String> {
        let results = json!({
            "machine": self.machine,
            "figures": self.nested(),
            "compared": targets::compare(self).iter().map(Comparison::to_json).collect::<Vec<Value>>(),
            "notes": self.notes,
            "problems": self.problems,
        });
        self.write("results.json", &format!("{results:#}\n"))?;
        self.samples
            .iter()
            .try_for_each(|(section, csv)| self.write(&format!("{section}.csv"), csv))
    }

    /// By section, run and name.
    fn nested(&self) -> Value {
        let mut nested = json!({});
        for Figure {
            section,
            run,
            name,
            unit,
            value,
        } in &self.figures
        {
            nested[section][run][name] = json!({"value": value, "unit": unit});
        }
        nested
    }

    fn write(&self, name: &str, text: &str) -> Result<(), String> {
        let file = self.file(name);
        fs::write(&file, text).map_err(|error| format!("{}: {error}", file.display()))
    }

    /// Whether all is well; it is printed.
    pub fn verdict(&self) -> bool {
        println!(
            "\nresults, raw samples and plots: {}",
            self.folder.display()
        );
        match self.problems.len() {
            0 => {
                println!("Every accepted order settled as it must; money and stock are conserved.")
            }
            count => println!("{count} PROBLEMS, the first: {}", self.problems[0]),
        }
        self.problems.is_empty()
    }
}

/// Three digits or more.
pub fn readable(value: f64) -> String {
    let decimals = match value.abs() {
        0.0 | 100.0.. => 0,
        10.0.. => 1,
        1.0.. => 2,
        _ => 3,
    };
    format!("{value:.decimals$}")
}

/// Each once, in the order of their first appearance.
fn distinct<'a>(names: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let mut distinct = vec![];
    for name in names {
        if !distinct.contains(&name) {
            distinct.push(name);
        }
    }
    distinct
}
