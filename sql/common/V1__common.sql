-- What every service's database has besides its own tables. Each function is defined once; a later migration that changes one
-- replaces it, and this file stays as it is.

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

-- The first key of this installation's advisory locks: those of a database are shared by all its schemas, and each of them may
-- hold a service.
create function lock_class() returns integer
    language sql stable as
$$
select case nspname when 'public' then 7301 else oid::integer end from pg_namespace where nspname = current_schema()
$$;

-- The last stored time, in microseconds since 1970; 1: nothing was stored yet. A sequence, because nothing of it is left behind
-- when it moves on: of a row that changes with every append all versions stay for as long as the oldest snapshot in the
-- database, and each append walks them. It may move on without a commit, which harms nothing.
create sequence outbox_clock;
-- The latest stored time ever, where the clock has run ahead and was set back; 1: it never was.
create sequence outbox_clock_ahead;

-- The lock under which stored time and row id are drawn: id order = stored time = commit order (I4). It is held to the
-- end of the transaction, so COMMIT follows at once. It is a statement of its own, before the insert: a volatile plpgsql
-- function runs each of its statements under a new snapshot.
--
-- The stored time never goes back by the little that a clock is corrected by. After a clock that ran ahead by more than a minute
-- it does: else all times would be wrong until that date.
create function stamp_outbox() returns timestamptz
    language plpgsql volatile as
$$
declare
    last_stored bigint;
    now_stored  bigint;
begin
    perform pg_advisory_xact_lock(lock_class(), 1);
    select last_value into last_stored from outbox_clock;
    now_stored := extract(epoch from clock_timestamp()) * 1000000;
    if last_stored > now_stored + 60000000 then
        perform setval('outbox_clock_ahead', greatest(last_stored, (select last_value from outbox_clock_ahead)));
    else
        now_stored := greatest(now_stored, last_stored);
    end if;
    perform setval('outbox_clock', now_stored);
    return timestamptz 'epoch' + now_stored * interval '1 microsecond';
end
$$;

-- Called under the delete of published rows: all of them were there, or none, when they were deleted before. Anything
-- between contradicts what Kafka says, and nothing may be deleted.
create function require_all_or_none(held bigint, wanted bigint) returns void
    language plpgsql immutable as
$$
begin
    if held not in (0, wanted) then
        raise exception 'the outbox holds % of % published rows', held, wanted using errcode = 'assert_failure';
    end if;
end
$$;

-- Where this service's consumers are. These rows alone count; what Kafka keeps is for lag tools.
-- Keyed by topic id: a topic that was deleted and made anew is another topic.
--
-- `leader_epoch`: which of the partition's leaders has written what lies before an offset. By it Kafka tells a consumer whether
-- another history of the log has taken its place meanwhile (KIP-320). It holds for the offset beside it, `epoch_offset`.
create table consumer_offset (
    topic_id     uuid    not null,
    partition    integer not null,
    topic        text    not null,
    next_offset  bigint  not null constraint consumer_offset_not_negative check (next_offset >= 0),
    leader_epoch integer,
    epoch_offset bigint,
    primary key (topic_id, partition)
) with (fillfactor = 50);

-- Moves offsets by compare-and-set, one after the other in the order of their keys, which is that of their locks. Returns where
-- each row is now (its ctid), in the order given; null where it is not at the offset that it was believed to be at.
--
-- `seen_at` is where the caller has seen the row last: it is found there at once. By its key it is found as well, past all the
-- versions that its moves have left behind, and these stay for as long as the oldest snapshot in the database. An index on the
-- offset would not help: an update that changes an index looks through all versions for another row of the same key.
create function move_offsets(
    topic_ids uuid[], partitions integer[], offsets_before bigint[], offsets_after bigint[], leader_epochs integer[],
    seen_at text[]
) returns text[] language plpgsql volatile as
$$
declare
    step  record;
    place tid;
    moved text[] := array_fill(null::text, array[cardinality(topic_ids)]);
begin
    for step in
        select *
          from unnest(topic_ids, partitions, offsets_before, offsets_after, leader_epochs, seen_at)
               with ordinality as s (topic_id, partition, was, becomes, leader_epoch, seen_at, number)
         order by s.topic_id, s.partition
    loop
        place := step.seen_at;
        update consumer_offset o
           set next_offset = step.becomes, epoch_offset = step.becomes, leader_epoch = step.leader_epoch
         where o.ctid = place
           and o.topic_id = step.topic_id and o.partition = step.partition and o.next_offset = step.was
        returning o.ctid into place;
        if not found then
            update consumer_offset o
               set next_offset = step.becomes, epoch_offset = step.becomes, leader_epoch = step.leader_epoch
             where o.topic_id = step.topic_id and o.partition = step.partition and o.next_offset = step.was
            returning o.ctid into place;
        end if;
        if found then
            moved[step.number] := place;
        end if;
    end loop;
    return moved;
end
$$;

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

-- The records that could not be handled, with their story (I7).
create table dead_letter (
    id             bigint generated always as identity primary key,
    cause          text        not null constraint dead_letter_cause check (cause in
                       ('UNDECODABLE', 'GIVEN_UP', 'UNKNOWN_ORDER', 'CONTRADICTION', 'LOG_GAP')),
    detail         text        not null,
    attempts       integer     not null,
    topic          text        not null,
    topic_id       uuid        not null,
    partition      integer     not null,
    record_offset  bigint      not null,
    to_offset      bigint, -- LOG_GAP: the first offset after the gap
    record_key     bytea,
    record_value   bytea,
    header_names   text[]      not null default '{}',
    header_values  bytea[]     not null default '{}',
    parked_at      timestamptz not null default clock_timestamp(),
    replayed_at    timestamptz,
    replay_result  text,
    replays        integer     not null default 0,
    discarded_at   timestamptz,
    discard_reason text,
    -- A replay that applied, or had nothing left to do, has handled the record; one that failed leaves it open.
    state          text        not null generated always as (
                       case when discarded_at is not null then 'DISCARDED'
                            when replay_result ~ '^(APPLIED|UNCHANGED)' then 'REPLAYED'
                            else 'OPEN' end) stored,
    handled_at     timestamptz generated always as (
                       coalesce(discarded_at, case when replay_result ~ '^(APPLIED|UNCHANGED)' then replayed_at end)) stored,
    -- The order is known where the key is its id as the services write it.
    order_id       uuid        generated always as (
                       case when encode(record_key, 'escape') ~ '^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$'
                            then encode(record_key, 'escape')::uuid end) stored,
    constraint dead_letter_discard check ((discarded_at is null) = (discard_reason is null))
);
-- The same record parked again (a topic replayed from its beginning) changes nothing. Its bytes tell it from another one
-- at the same offset (a log that was cut and has grown again).
create unique index dead_letter_once on dead_letter
    (topic_id, partition, record_offset, cause, md5(coalesce(record_value, '')), coalesce(to_offset, -1));
create index dead_letter_order_id on dead_letter (order_id, id);
-- Handled ones are removed some time later, the oldest first; those that nobody has handled are counted.
create index dead_letter_handled_at on dead_letter (handled_at);

-- Who did what when, and what came of it. It goes with its record.
create table dead_letter_action (
    dead_letter_id bigint      not null references dead_letter (id) on delete cascade,
    id             bigint      generated always as identity,
    at             timestamptz not null default clock_timestamp(),
    actor          text        not null,
    action         text        not null,
    result         text        not null,
    detail         text,
    primary key (dead_letter_id, id),
    constraint dead_letter_action_result check
        (action = 'REPLAY' and result in ('APPLIED', 'UNCHANGED', 'FAILED') or action = 'DISCARD' and result = 'DISCARDED')
);

-- Each time that an operator said that this database goes on where another one had written last. Kafka's positions carry
-- the latest number: of two databases with the same installation, that with the higher one goes on.
create table takeover (
    number      integer     primary key constraint takeover_number_positive check (number > 0),
    -- The databases that had written, as positions name them.
    origins     text[]      not null,
    -- The latest stored time of theirs. What one of them stores later was not taken over.
    accepted_to timestamptz not null,
    taken_at    timestamptz not null default clock_timestamp()
);

-- The relay's leaderships, noted before any of them publishes: of each of Kafka's producer ids the last epoch that was given
-- to a relay of this database. Positions carry theirs; one that is not known here was written by a copy of this database.
create table leadership (
    producer_id bigint      primary key,
    epoch       integer     not null,
    begun_at    timestamptz not null default clock_timestamp()
) with (fillfactor = 50);
