-- What every service's database has besides its own tables.

-- The name of this installation. A position kept in Kafka carries it, so that a relay never takes the
-- position of another database for its own.
create table install (
    only_row   boolean primary key default true constraint install_one_row check (only_row),
    install_id uuid        not null default gen_random_uuid(),
    created_at timestamptz not null default clock_timestamp()
);
insert into install default values;

-- The oldest binary that may run on this schema. A migration that is not additive raises it.
create table schema_compat (
    only_row    boolean primary key default true constraint schema_compat_one_row check (only_row),
    min_version integer not null
);
insert into schema_compat (min_version) values (1);

-- The last stored time, kept here because the outbox itself may be empty.
create table outbox_clock (
    only_row       boolean primary key default true constraint outbox_clock_one_row check (only_row),
    last_stored_at timestamptz not null
) with (fillfactor = 10);
insert into outbox_clock (last_stored_at) values ('-infinity');

-- The lock under which stored time and row id are drawn: id order = stored time = commit order (I4).
-- It is held to the end of the transaction, so COMMIT follows at once. A statement of its own, before
-- the insert: a volatile plpgsql function runs each of its statements under a new snapshot.
create function append_outbox(outbox text, order_ids uuid[], messages text[]) returns void
    language plpgsql volatile as
$$
declare
    now_stored timestamptz;
begin
    if cardinality(order_ids) = 0 then
        return;
    end if;
    perform pg_advisory_xact_lock(7301, 1);
    update outbox_clock set last_stored_at = greatest(clock_timestamp(), last_stored_at)
        returning last_stored_at into now_stored;
    execute format('insert into %I (stored_at, order_id, messages)
                    select $1, order_id, messages::json
                      from unnest($2, $3) with ordinality as row (order_id, messages, place)
                     order by place', outbox)
        using now_stored, order_ids, messages;
end
$$;

-- Where this service's consumers are. These rows alone count; what Kafka keeps is for lag tools.
-- Keyed by topic id: a topic that was deleted and made anew is another topic.
create table consumer_offset (
    topic_id    uuid    not null,
    partition   integer not null,
    topic       text    not null,
    next_offset bigint  not null constraint consumer_offset_not_negative check (next_offset >= 0),
    primary key (topic_id, partition)
) with (fillfactor = 50);

-- The records that could not be handled, with their story (I7).
create table dead_letter (
    id            bigint generated always as identity primary key,
    cause         text        not null constraint dead_letter_cause check (cause in
                      ('UNDECODABLE', 'GIVEN_UP', 'UNKNOWN_ORDER', 'CONTRADICTION', 'LOG_GAP')),
    detail        text        not null,
    attempts      integer     not null,
    topic         text        not null,
    topic_id      uuid        not null,
    partition     integer     not null,
    record_offset bigint      not null,
    to_offset     bigint, -- LOG_GAP: the first offset after the gap
    record_key    bytea,
    record_value  bytea,
    header_names  text[]      not null default '{}',
    header_values bytea[]     not null default '{}',
    parked_at     timestamptz not null default clock_timestamp(),
    replayed_at   timestamptz,
    replay_result text
);
-- The same record parked again (a topic replayed from its beginning) changes nothing. Its bytes tell it from another one
-- at the same offset (a log that was cut and has grown again).
create unique index dead_letter_once on dead_letter
    (topic_id, partition, record_offset, cause, md5(coalesce(record_value, '')), coalesce(to_offset, -1));
