-- The lock under which stored time and row id are drawn: id order = stored time = commit order (I4). It is held to the
-- end of the transaction, so COMMIT follows at once. It is a statement of its own, before the insert: a volatile plpgsql
-- function runs each of its statements under a new snapshot.
--
-- Each service's append_outbox(order_ids, messages) calls it; the one with the outbox's name as a parameter, which
-- plans its insert at every call, stays for instances of the version before.
create function stamp_outbox() returns timestamptz
    language plpgsql volatile as
$$
declare
    now_stored timestamptz;
begin
    perform pg_advisory_xact_lock(7301, 1);
    update outbox_clock set last_stored_at = greatest(clock_timestamp(), last_stored_at)
        returning last_stored_at into now_stored;
    return now_stored;
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
