//! What the three services have in common. `shared` knows the messages of the saga ([`event`]) but no
//! business: what a message does is decided in the services' handlers.
//!
//! | module | idea |
//! | --- | --- |
//! | [`config`] | settings from the environment, read nowhere else |
//! | [`args`], [`check`], [`ready`] | the command line: help from the settings themselves; whether a service could start, and nothing changed; whether one is ready |
//! | [`logging`], [`error`], [`shutdown`], [`backoff`], [`service`] | a process: its lines, failures, stop, pauses, threads |
//! | [`db`], [`postgres_tls`], [`pool`], [`schema`] | PostgreSQL sessions with limits and cached statements; their TLS; connections; migrations |
//! | [`event`], [`envelope`], [`delivery`] | topics, types, bodies; headers and JSON; what an answer says of what it answers: the contract between the services |
//! | [`outbox`], [`leader`], [`wake`], [`relay`], [`position`], [`beside`] | from a committed row to a committed record, once and in stored order; which of several copies of a database may publish |
//! | [`consumer`], [`progress`], [`mod@slice`], [`effects`], [`offsets`], [`handler`] | from a committed record to its effect, once |
//! | [`aside`], [`waits`] | records that wait for a row which somebody holds; partitions that wait, and for what |
//! | [`dead_letter`], [`dead_letter_action`], [`replay`], [`replay_many`] | what could not be handled: parked, and what people do about it |
//! | [`http`], [`dead_letter_http`], [`dead_letter_view`] | requests, answers, problems; the parked records over HTTP |
//! | [`health`], [`monitor`], [`metrics`], [`operations_http`] | whether the threads turn; what is seen from outside; what is counted; all of it over HTTP |
//! | `sabotage` | only with `--cfg sabotage`: mechanisms turned off, to show that the checks notice |
//! | [`topics`], [`brokers`] | what is asked of Kafka before a service works with it |
//! | [`housekeeping`] | rows that nobody needs any more are removed |
//! | [`descriptors`] | what the service itself needs comes first, clients get the rest |

pub mod args;
pub mod aside;
pub mod backoff;
pub mod beside;
pub mod brokers;
pub mod check;
pub mod config;
pub mod consumer;
pub mod db;
pub mod dead_letter;
pub mod dead_letter_action;
pub mod dead_letter_http;
pub mod dead_letter_view;
pub mod delivery;
pub mod descriptors;
pub mod effects;
pub mod envelope;
pub mod error;
pub mod event;
pub mod handler;
pub mod health;
pub mod housekeeping;
pub mod http;
pub mod leader;
pub mod logging;
pub mod metrics;
pub mod monitor;
pub mod offsets;
pub mod operations_http;
pub mod outbox;
pub mod pool;
pub mod position;
pub mod postgres_tls;
pub mod progress;
pub mod ready;
pub mod recovery;
pub mod relay;
pub mod replay;
pub mod replay_many;
#[cfg(sabotage)]
pub mod sabotage;
pub mod schema;
pub mod service;
pub mod shutdown;
pub mod slice;
pub mod topics;
pub mod waits;
pub mod wake;
