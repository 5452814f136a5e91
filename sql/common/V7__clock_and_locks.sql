-- The first key of this installation's advisory locks: those of a database are shared by all its schemas, and each of them may
-- hold a service. (That of `public` is the one which versions before this one use everywhere.)
create function lock_class() returns integer
    language sql stable as
$$
select case nspname when 'public' then 7301 else oid::integer end from pg_namespace where nspname = current_schema()
$$;

-- The last stored time, in microseconds since 1970; 1: nothing was stored yet. A sequence, because nothing of it is left behind
-- when it moves on: of a row that changes with every append all versions stay for as long as the oldest snapshot in the
-- database, and each append walks them. It may move on without a commit, which harms nothing.
do $$
declare
    last_stored bigint;
begin
    select (extract(epoch from last_stored_at) * 1000000)::bigint into last_stored
      from outbox_clock where isfinite(last_stored_at);
    drop table outbox_clock;
    create sequence outbox_clock;
    if last_stored is not null then
        perform setval('outbox_clock', last_stored);
    end if;
end
$$;
-- The latest stored time ever, where the clock has run ahead and was set back; 1: it never was.
create sequence outbox_clock_ahead;

-- The lock under which stored time and row id are drawn: id order = stored time = commit order (I4). It is held to the
-- end of the transaction, so COMMIT follows at once. It is a statement of its own, before the insert: a volatile plpgsql
-- function runs each of its statements under a new snapshot.
--
-- The stored time never goes back by the little that a clock is corrected by. After a clock that ran ahead by more than a minute
-- it does: else all times would be wrong until that date.
create or replace function stamp_outbox() returns timestamptz
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

-- It was for instances of a version that can't be started any more.
drop function append_outbox(text, uuid[], text[]);
