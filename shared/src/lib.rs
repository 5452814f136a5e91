//! What the three services have in common. `shared` knows the messages of the saga ([`event`]) but no
//! business: what a message does is decided in the services' handlers.
//!
//! | module | idea |
//! | --- | --- |
//! | [`config`] | settings from the environment, read nowhere else |
//! | [`service`] | a process: command line, start, named threads, stop; whether it could start, is ready, and what is seen of it from outside |
//! | [`error`], [`shutdown`], [`backoff`], [`heartbeat`], [`metrics`] | failures, the stop, pauses, whether the threads turn, what is counted |
//! | [`event`] | topics, types, bodies, headers and JSON: the contract between the services |
//! | [`handler`] | what a service does with the events it reads: the one trait that it implements |
//! | [`db`] | PostgreSQL: sessions with limits and cached statements, TLS, connections, migrations, rows that nobody needs any more |
//! | [`outbox`] | from a committed row to a committed record, once and in stored order; which of several copies of a database may publish |
//! | [`consumer`] | from a committed record to its effect, once; records that wait for a row which somebody holds; orders that the database lost |
//! | [`dead_letter`] | what could not be handled: parked, shown, replayed, discarded |
//! | [`http`] | requests, answers, problems |
//! | [`waits`] | what waits because it fails again and again, and for what |
//! | [`worker`] | a thread's turns: heartbeat, work, back off, log |

/// The names of an enum's values, as they stand in tables, JSON, metrics and settings.
#[macro_export]
macro_rules! names {
    ($type:ident: $($value:ident = $name:literal),+ $(,)?) => {
        impl $type {
            /// All values.
            pub const ALL: [$type; [$($name),+].len()] = [$($type::$value),+];

            /// Its name.
            pub const fn name(self) -> &'static str {
                match self {
                    $($type::$value => $name),+
                }
            }

            /// The value of a name.
            pub fn from_name(name: &str) -> Option<$type> {
                $type::ALL.into_iter().find(|value| value.name() == name)
            }
        }
    };
}

pub mod backoff;
pub mod config;
pub mod consumer;
pub mod db;
pub mod dead_letter;
pub mod error;
pub mod event;
pub mod handler;
pub mod heartbeat;
pub mod http;
pub mod metrics;
pub mod outbox;
pub mod service;
pub mod shutdown;
pub mod waits;
pub mod worker;
