-- Records that wait for a row which somebody else holds locked, a person mostly. Their offsets have moved on, so that nothing
-- else waits; they are tried again until they have had their effect.
create table set_aside (
    id            bigint generated always as identity primary key,
    topic_id      uuid        not null,
    topic         text        not null,
    partition     integer     not null,
    record_offset bigint      not null,
    record_time   bigint      not null, -- as Kafka has it, in milliseconds since 1970
    record_key    bytea,
    record_value  bytea,
    header_names  text[]      not null,
    header_values bytea[]     not null,
    waits_for     text        not null,
    since         timestamptz not null default clock_timestamp(),
    tried_at      timestamptz not null default clock_timestamp(),
    attempts      integer     not null default 1 -- that failed by the record's own fault
);
-- Those that were not tried for longest come first: some may wait for a row that is held for long, others for one that is free.
create index set_aside_tried_at on set_aside (tried_at, id);
-- What comes later about the same order waits behind them.
create index set_aside_record_key on set_aside (record_key);
