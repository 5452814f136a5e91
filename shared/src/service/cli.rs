//! A service's command line: what it is asked for, and the help. `--help` is made of what [`Config`] reads: a setting
//! that is read is shown.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::io::Write as _;

use lexopt::Arg::{Long, Short};

use crate::config::Config;
use crate::event::Service;

/// What a service's process is asked to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// No argument: run until it is stopped.
    Run,
    /// `--check`: say whether it could start here and now.
    Check,
    /// `--ready`: say whether the instance that runs with these settings is ready.
    Ready,
    /// `--take-over`: go on with a database that was not the last one to write.
    TakeOver,
    /// `--help`: say what it is and what can be set.
    Help,
    /// `--version`: say its name and version.
    Version,
}

const USAGE: &str =
    "  (nothing)      runs one instance until SIGTERM or SIGINT; missing migrations are applied, missing topics created
  --check        says whether it could start here and now, changes nothing; exit 0: it could, 1: it could not
  --ready        says whether the instance that runs with these settings is ready; exit 0: it is, 1: it is not
  --take-over    run while the other one is stopped: goes on with this database although another copy of it wrote last;
                 exit 0: the service may be started, 1: it may not
  -h, --help     this text
  -V, --version  name and version
";

/// Reads the arguments, without the program's name.
///
/// # Errors
/// What is not known or too much, and what is known.
pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Command, String> {
    let mut parser = lexopt::Parser::from_args(arguments);
    let mut wanted = Command::Run;
    while let Some(argument) = parser.next().map_err(refused)? {
        wanted = match argument {
            _ if wanted != Command::Run => return Err(refused("one argument is enough".into())),
            Long("check") => Command::Check,
            Long("ready") => Command::Ready,
            Long("take-over") => Command::TakeOver,
            Long("help") | Short('h') => Command::Help,
            Long("version") | Short('V') => Command::Version,
            other => return Err(refused(other.unexpected())),
        };
    }
    Ok(wanted)
}

/// The text of `--version`. The services and what they share have one version.
pub fn version(service: Service) -> String {
    format!("{} {}\n", service.name(), env!("CARGO_PKG_VERSION"))
}

/// The text of `--help`: what the service is (`about`), its arguments, and every setting that [`Config`] reads.
pub fn help(service: Service, about: &str) -> String {
    let name = service.name();
    let mut text = format!(
        "{name}: {about}\n\nusage: {name} [--check | --ready | --take-over | --help | --version]\n\n{USAGE}\n\
         Exit codes: 0 stopped as asked, 1 stopped by an error, 2 bad settings or arguments.\n\n\
         Settings are environment variables, shown with their defaults; an empty one counts as not set.\n"
    );
    for setting in Config::settings(service) {
        let (name, default, meaning, takes) = (
            &setting.name,
            &setting.default,
            setting.meaning,
            &setting.takes,
        );
        write!(text, "\n  {name}={default}\n      {meaning} ({takes})")
            .expect("a string takes all");
    }
    text.push('\n');
    text
}

/// To standard output; a reader that is gone (`--help | head`) is no error.
pub(crate) fn print(text: &str) {
    let _ = std::io::stdout().write_all(text.as_bytes());
}

fn refused(error: lexopt::Error) -> String {
    format!("{error}; known are:\n{USAGE}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(arguments: &[&str]) -> Result<Command, String> {
        parse(arguments.iter().map(OsString::from))
    }

    #[test]
    fn each_argument_is_known_alone() {
        let cases: [(&[&str], Command); 8] = [
            (&[], Command::Run),
            (&["--check"], Command::Check),
            (&["--ready"], Command::Ready),
            (&["--take-over"], Command::TakeOver),
            (&["--help"], Command::Help),
            (&["-h"], Command::Help),
            (&["--version"], Command::Version),
            (&["-V"], Command::Version),
        ];
        for (arguments, wanted) in cases {
            assert_eq!(parsed(arguments), Ok(wanted), "{arguments:?}");
        }
    }

    #[test]
    fn what_is_unknown_or_too_much_is_named_with_what_is_known() {
        let cases: [(&[&str], &str); 5] = [
            (&["--chek"], "invalid option '--chek'"),
            (&["-x"], "invalid option '-x'"),
            (&["now"], "unexpected argument \"now\""),
            (
                &["--check=yes"],
                "unexpected argument for option '--check': \"yes\"",
            ),
            (&["--check", "--help"], "one argument is enough"),
        ];
        for (arguments, wanted) in cases {
            let error = parsed(arguments).unwrap_err();
            assert!(
                error.starts_with(wanted) && error.contains("--check"),
                "{arguments:?}: {error}"
            );
        }
    }
}
