//! The whole system on real servers, by separate processes that are killed and frozen for real.
//!
//! | module | claims |
//! | --- | --- |
//! | `rows` | what happens to an order: the eight rows, compensation before action, deadlines (I2, I3) |
//! | `replay` | every topic replayed from its beginning changes nothing (I3) |
//! | `relay` | stored order, both or neither, one leader, nothing twice (I4, I5, I6) |
//! | `postgres` | PostgreSQL as it is in other places: read-only, shared, copied without its sequences, with people at work |
//! | `waits` | what fails again and again is reported: which part, for what, and who is to blame |
//! | `repair` | a database that comes back older: orders are rebuilt from Kafka, what contradicts is asked back or parked (I9) |
//! | `brokers` | Kafka as it is in other places: users with few rights, topics that operators make, strangers in the group |
//! | `at_once` | a batch decided on what was read without locks overwrites and passes over nothing (I2, I3) |
//! | `crash` | kill -9 and SIGTERM at any moment (I1, I2, I8) |
//! | `instances` | several of every service: shared partitions, rolling restarts, a dead leader replaced (I6) |
//! | `outage` | database or broker away for a while delays and loses nothing (I1) |
//! | `overload` | more orders than can be settled: accepted means settled in time, refused leaves no trace (I10) |
//! | `poison` | what can't be handled is parked with its bytes, and its partition moves on (I7) |
//! | `letters` | what is parked is found, replayed with one effect, discarded; who did what when is kept (I3, I7) |
//! | `takeover` | of several copies of the databases one may use the topics: the one that wrote last, or takes over |
//! | `timeline` | an order's story, from what its messages carry: each step, found again on the topics |
//! | `traces` | spans in a real Jaeger; collectors that are no good |
//! | `schema` | a database that is empty, newer, or of another make at the start |
//! | `security` | TLS and SASL on the wires; what is wrong with them ends a service at its start |
//! | `http` | each error of HTTP interface; one key, one order |
//! | `servers` | what hostile clients do to our HTTP server, and to `tiny_http` in its place |
//! | `page` | the order service's page, in a real browser |
//! | `deploy` | `--help`, `--version`, `--check`: what a service says of itself and of the place it is to run in |
//! | `upgrade` | an earlier version runs beside this one, by binaries that `./run.sh proof` builds of its commit |
//! | `guard` | who may change things, and which pages a browser lets in |
//! | `operations` | what is reported of a service's health, and what it counts |
//! | `housekeeping` | what is old enough goes, what matters stays |
//! | `standby` | the harness itself: a database that takes over, without the last rows of the one before or with all |
//! | `attack` | clients that are many, slow, endless or senseless harm nobody else |

mod at_once;
mod attack;
mod brokers;
mod crash;
mod deploy;
mod guard;
mod housekeeping;
mod http;
mod instances;
mod letters;
mod operations;
mod outage;
mod overload;
mod page;
mod poison;
mod postgres;
mod relay;
mod repair;
mod replay;
mod rows;
mod schema;
mod security;
mod servers;
mod standby;
mod takeover;
mod timeline;
mod traces;
mod upgrade;
mod waits;
