//! How one variable is read: known with what it takes, checked, and refused by its name.

use std::ffi::OsString;
use std::ops::RangeInclusive;
use std::str::FromStr;

/// A setting as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// The variable.
    pub name: String,
    /// What counts without it; empty: nothing.
    pub default: String,
    /// Which values it takes, with their unit.
    pub takes: String,
    /// What it is for.
    pub meaning: &'static str,
}

/// Reads variables, and collects what is known and what is wrong.
pub(super) struct Reader<'a> {
    lookup: &'a dyn Fn(&str) -> Option<OsString>,
    pub(super) settings: Vec<Setting>,
    pub(super) errors: Vec<String>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(lookup: &'a dyn Fn(&str) -> Option<OsString>) -> Reader<'a> {
        Reader {
            lookup,
            settings: Vec::new(),
            errors: Vec::new(),
        }
    }

    /// Every setting is read here, so that each is known.
    pub(super) fn value(
        &mut self,
        name: &str,
        default: &str,
        takes: &str,
        meaning: &'static str,
    ) -> String {
        let (setting, default) = (name.to_string(), default.to_string());
        self.settings.push(Setting {
            name: setting,
            default: default.clone(),
            takes: takes.to_string(),
            meaning,
        });
        let given = (self.lookup)(name)
            .map(OsString::into_string)
            .transpose()
            .unwrap_or_else(|_| {
                // it may be a secret: it is not repeated
                self.errors.push(format!("{name}: is not UTF-8"));
                None
            });
        given
            .map(|value| value.trim().to_string())
            .filter(|value| !value.is_empty())
            .unwrap_or(default)
    }

    pub(super) fn optional(
        &mut self,
        name: &str,
        takes: &str,
        meaning: &'static str,
    ) -> Option<String> {
        Some(self.value(name, "", takes, meaning)).filter(|value| !value.is_empty())
    }

    pub(super) fn refuse(&mut self, name: &str, value: &str, wanted: &str) {
        self.errors
            .push(format!("{name}={value:?}: must be {wanted}"));
    }

    /// `default` must itself be parsable: it stands in for a refused value, which is never used.
    pub(super) fn parsed<T: FromStr>(
        &mut self,
        name: &str,
        default: &str,
        wanted: &str,
        meaning: &'static str,
    ) -> T {
        let value = self.value(name, default, wanted, meaning);
        value.parse().unwrap_or_else(|_| {
            self.refuse(name, &value, wanted);
            default.parse().ok().expect("the default is valid")
        })
    }

    pub(super) fn number<T: TryFrom<i64>>(
        &mut self,
        name: &str,
        default: i64,
        range: RangeInclusive<i64>,
        meaning: &'static str,
    ) -> T {
        let value = self.value(name, &default.to_string(), &whole(&range), meaning);
        self.within(name, &value, range)
    }

    pub(super) fn optional_number<T: TryFrom<i64>>(
        &mut self,
        name: &str,
        range: RangeInclusive<i64>,
        meaning: &'static str,
    ) -> Option<T> {
        let value = self.optional(name, &whole(&range), meaning)?;
        Some(self.within(name, &value, range))
    }

    /// The range's start stands in for a refused value.
    pub(super) fn within<T: TryFrom<i64>>(
        &mut self,
        name: &str,
        value: &str,
        range: RangeInclusive<i64>,
    ) -> T {
        let number = value
            .parse()
            .ok()
            .filter(|number| range.contains(number))
            .unwrap_or_else(|| {
                self.refuse(name, value, &whole(&range));
                *range.start()
            });
        T::try_from(number).ok().expect("the range fits the type")
    }
}

fn whole(range: &RangeInclusive<i64>) -> String {
    format!("a whole number from {} to {}", range.start(), range.end())
}
