//! Getting requests to brokers: who leads and who coordinates, connections, sockets, and who we are.

pub(crate) mod backoff;
pub(crate) mod cluster;
pub(crate) mod connection;

pub(crate) mod sasl;
pub(crate) mod stream;
#[cfg(feature = "tls")]
pub(crate) mod tls;
