-- Stores outbox rows in the order given, under the append lock.
create function append_outbox(order_ids uuid[], messages text[]) returns void
    language plpgsql volatile as
$$
declare
    now_stored timestamptz;
begin
    if cardinality(order_ids) = 0 then
        return;
    end if;
    now_stored := stamp_outbox();
    insert into order_outbox (stored_at, order_id, messages)
        select now_stored, id, message::json
          from unnest(order_ids, messages) with ordinality as row (id, message, place)
         order by place;
end
$$;

-- Stores a batch of new orders with their outbox rows: one call, so that no client round trip lies under the append
-- lock. Keys are inserted in their order, against deadlocks between two writers. Answers, for each request, the id of
-- the order that stands for it: its own, or that of an earlier request with its key; further which of them were placed
-- by this call, and when. A call sent again with the same ids changes nothing.
--
-- place_orders stays for instances of the version before.
create function place_new_orders(
    order_ids uuid[], user_names text[], item_names text[], prices bigint[], quantities bigint[],
    keys text[], traceparents text[], messages text[],
    out standing uuid[], out placed uuid[], out placed_at text
) language plpgsql volatile as
$$
declare
    now_placed timestamptz := clock_timestamp();
begin
    placed_at := to_char(now_placed at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"');
    standing := order_ids;
    if cardinality(array_remove(keys, null)) > 0 then
        insert into idempotency_key (idempotency_key, order_id)
            select key, id from unnest(keys, order_ids) with ordinality as request (key, id, place)
             where key is not null order by key, place
            on conflict do nothing;
        -- a statement of its own: it sees the keys whose inserts were waited for
        select array_agg(coalesce(k.order_id, request.id) order by place) into standing
          from unnest(keys, order_ids) with ordinality as request (key, id, place)
          left join idempotency_key k on k.idempotency_key = request.key;
    end if;
    with inserted as (
        insert into orders (order_id, user_name, item_name, price, quantity, traceparent, created_at, updated_at)
            select id, user_name, item_name, price, quantity, traceparent, now_placed, now_placed
              from unnest(order_ids, user_names, item_names, prices, quantities, traceparents, standing)
                   as request (id, user_name, item_name, price, quantity, traceparent, stands)
             where id = stands order by id
            on conflict do nothing
            returning order_id
    )
    select coalesce(array_agg(order_id), '{}') into placed from inserted;
    if cardinality(placed) = cardinality(order_ids) then
        perform append_outbox(order_ids, messages);
    else
        perform append_outbox(array_agg(id order by place), array_agg(message order by place))
           from unnest(order_ids, messages) with ordinality as row (id, message, place)
          where id = any (placed)
         having count(*) > 0;
    end if;
end
$$;

-- Deletes the rows with these ids, which are published, and marks their orders: sides that are still READY become
-- IN_PROGRESS, and the deadline starts. The orders are locked in id order first.
create function remove_published(first_id bigint, last_id bigint, published bigint, deadline interval) returns void
    language plpgsql volatile as
$$
declare
    removed uuid[];
begin
    with gone as (delete from order_outbox where id between first_id and last_id returning order_id)
    select array_agg(order_id) into removed from gone;
    perform require_all_or_none(coalesce(cardinality(removed), 0), published);
    with ready as (
        select o.order_id from unnest(removed) as p (order_id) join orders o using (order_id)
         where o.payment_status = 'READY' or o.stock_status = 'READY'
         order by o.order_id for update of o
    ), marked as (
        update orders o
           set payment_status = case when o.payment_status = 'READY' then 'IN_PROGRESS' else o.payment_status end,
               stock_status = case when o.stock_status = 'READY' then 'IN_PROGRESS' else o.stock_status end,
               updated_at = clock_timestamp()
          from ready where o.order_id = ready.order_id
        returning o.order_id
    )
    insert into deadline (due_at, round, order_ids)
    select clock_timestamp() + deadline, 0, array_agg(order_id) from marked having count(*) > 0;
end
$$;
