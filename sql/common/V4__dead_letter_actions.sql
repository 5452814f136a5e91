-- What people did about parked records, and what became of these. Additive: an instance of the version before parks, lists
-- and replays beside one of this version. So what a record's state is follows from what both of them write.

alter table dead_letter
    add column replays        integer not null default 0,
    add column discarded_at   timestamptz,
    add column discard_reason text,
    add constraint dead_letter_discard check ((discarded_at is null) = (discard_reason is null));

-- A replay that applied, or had nothing left to do, has handled the record; one that failed leaves it open. The order is known
-- where the key is its id as the services write it.
alter table dead_letter
    add column state text not null generated always as (
        case when discarded_at is not null then 'DISCARDED'
             when replay_result ~ '^(APPLIED|UNCHANGED)' then 'REPLAYED'
             else 'OPEN' end) stored,
    add column handled_at timestamptz generated always as (
        coalesce(discarded_at, case when replay_result ~ '^(APPLIED|UNCHANGED)' then replayed_at end)) stored,
    add column order_id uuid generated always as (
        case when encode(record_key, 'escape') ~ '^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$'
             then encode(record_key, 'escape')::uuid end) stored;
create index dead_letter_order_id on dead_letter (order_id, id);

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

-- Of earlier replays the last one is known, but not who asked for it.
insert into dead_letter_action (dead_letter_id, at, actor, action, result, detail)
select id, replayed_at, 'unknown', 'REPLAY', substring(replay_result from '^[A-Z]+'), substring(replay_result from ': (.*)$')
  from dead_letter where replayed_at is not null;
update dead_letter set replays = 1 where replayed_at is not null;
