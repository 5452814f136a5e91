//! A row on the screen: plain text, readable without colour. Printed as it happens.

/// What was compared in one row.
pub struct Report {
    /// The row's number.
    pub number: usize,
    /// How often something else happened than was expected.
    pub differences: usize,
}

impl Report {
    /// Nothing compared yet.
    pub fn new(number: usize) -> Report {
        Report {
            number,
            differences: 0,
        }
    }

    /// The row's name.
    pub fn title(&self, text: &str) {
        println!("\n{text}");
    }

    /// What the following lines are about.
    pub fn heading(&self, text: &str) {
        println!("  {text:<32}   {:<20}   happened", "expected");
    }

    /// A line of its own.
    pub fn note(&self, text: &str) {
        println!("    {text}");
    }

    /// A line of the table. `expected` may name several values, separated by " or ".
    pub fn compare(&mut self, label: &str, expected: &str, happened: &str) {
        let is_expected = expected.split(" or ").any(|value| value == happened);
        self.differences += usize::from(!is_expected);
        let mark = if is_expected { "" } else { "   <-- DIFFERENT" };
        println!("    {label:<30}   {expected:<20}   {happened}{mark}");
    }
}
