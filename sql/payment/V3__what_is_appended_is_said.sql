-- As in V1; besides it says what it has stored, in a setting that lasts until the end of the transaction: the first id (the others
-- follow it), the stored time, and the server (common's V4). By that the relay publishes rows of its own process
-- without reading them. It says nothing where somebody has drawn ids between, without the append lock, or a trigger has dropped or
-- changed rows.
-- The ids are those of the rows in the order given: they are drawn above the sort.
create or replace function append_outbox(order_ids uuid[], messages text[]) returns void
    language plpgsql volatile as
$$
declare
    now_stored timestamptz;
    first_id   bigint;
    last_id    bigint;
    orders     uuid[];
    written    text[];
begin
    if cardinality(order_ids) = 0 then
        return;
    end if;
    now_stored := stamp_outbox();
    with stored as (
        insert into payment_outbox as o (stored_at, order_id, messages)
            select now_stored, id, message::json
              from unnest(order_ids, messages) with ordinality as row (id, message, place)
             order by place
        returning o.id, o.order_id, o.messages::text as written
    )
    select min(id), max(id), array_agg(order_id order by id), array_agg(stored.written order by id)
      into first_id, last_id, orders, written from stored;
    perform set_config('saga.appended', case
        when orders = order_ids and written = messages and last_id - first_id + 1 = cardinality(order_ids) then
            concat_ws(' ', first_id, to_char(now_stored at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'), outbox_server())
        else '' end, true);
end
$$;
