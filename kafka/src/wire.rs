//! Bytes as Kafka's protocol has them, over the codec crate `kafka-protocol`.

pub(crate) mod batch;
pub(crate) mod compression;
pub(crate) mod layout;
pub(crate) mod primitive;
pub(crate) mod protocol;
