//! What the tests of the whole system stand on: real servers, real processes, and ways to hurt them.
//!
//! | module | idea |
//! | --- | --- |
//! | [`world`] | an isolated installation: three databases, eight topics, the services started in it |
//! | [`process`] | a child process: signals, its log, its end; it never outlives the tests |
//! | [`api`] | HTTP calls to one instance |
//! | [`flood`], [`wire`] | requests at their moments, whatever becomes of those before; HTTP as bytes, for loads |
//! | [`browser`] | a real browser, for the page |
//! | [`contract`] | every answer held against `openapi.yaml` |
//! | [`messages`] | every record that a service wrote held against `asyncapi.yaml` |
//! | [`topics`] | what a read-committed reader sees, and records written by hand |
//! | [`books`] | what the tables hold: money, stock, offsets, parked records |
//! | [`proxy`], [`broker`] | connections cut or held; a private Kafka that can be killed |
//! | [`authority`] | certificates made for a test |
//! | [`threads`] | one thread of a process ended |
//! | [`locks`] | sessions that stand still at a lock |
//! | [`private`] | a private PostgreSQL and Kafka of `./run.sh servers`, killed and started again |
//! | [`standby`] | a PostgreSQL of our own with a standby that takes over: with all commits, or after a lag without the last ones |
//! | [`pooler`] | a PgBouncer before the test PostgreSQL |
//! | [`jaeger`] | a Jaeger, for spans |
//! | [`figures`], [`plot`] | percentiles; pictures as SVG |
//! | [`wait`], [`env`](mod@env) | conditions with a limit; where the test servers are |

pub mod api;
#[path = "../../kafka/tests/common/authority.rs"]
pub mod authority;
pub mod books;
pub mod broker;
pub mod browser;
pub mod contract;
mod document;
pub mod env;
pub mod figures;
pub mod flood;
pub mod jaeger;
pub mod locks;
pub mod messages;
pub mod plot;
pub mod pooler;
#[path = "../../kafka/tests/common/ports.rs"]
mod ports;
pub mod private;
pub mod process;
pub mod proxy;
pub mod standby;
pub mod threads;
pub mod topics;
pub mod wait;
pub mod wire;
pub mod world;

pub use api::{Answer, Api, is_refusal};
pub use broker::Broker;
pub use ports::free_port;
pub use process::{Process, Signal};
pub use proxy::Proxy;
pub use standby::Replicated;
pub use topics::{Message, Seen};
pub use wait::{LIMIT, eventually, until};
pub use world::{Instance, Service, TOPICS, World};
