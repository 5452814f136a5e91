-- As before, but only the conflicts that are meant are passed over: another one (of a key that PostgreSQL draws, say) is an error.
create or replace function place_new_orders(
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
        loop
            insert into idempotency_key (idempotency_key, order_id)
                select key, id from unnest(keys, order_ids) with ordinality as request (key, id, place)
                 where key is not null order by key, place
                on conflict (idempotency_key) do nothing;
            -- a statement of its own: it sees the keys whose inserts were waited for
            with held as (
                select k.idempotency_key, k.order_id
                  from (select distinct key from unnest(keys) as k (key) where key is not null order by key) as asked
                  join idempotency_key k on k.idempotency_key = asked.key
                   for share of k
            )
            select array_agg(case when request.key is null then request.id else held.order_id end order by place)
              into standing
              from unnest(keys, order_ids) with ordinality as request (key, id, place)
              left join held on held.idempotency_key = request.key;
            exit when array_position(standing, null) is null;
        end loop;
    end if;
    with inserted as (
        insert into orders (order_id, user_name, item_name, price, quantity, traceparent, created_at, updated_at)
            select id, user_name, item_name, price, quantity, traceparent, now_placed, now_placed
              from unnest(order_ids, user_names, item_names, prices, quantities, traceparents, standing)
                   as request (id, user_name, item_name, price, quantity, traceparent, stands)
             where id = stands order by id
            on conflict (order_id) do nothing
            returning order_id
    )
    select coalesce(array_agg(order_id), '{}') into placed from inserted;
    -- an id's first 48 bits are the milliseconds at which it was drawn
    insert into order_flow as flow (second, session, placed)
        select ('x' || left(translate(id::text, '-', ''), 12))::bit(48)::bigint / 1000, pg_backend_pid(), count(*)
          from unnest(placed) as p (id) group by 1
        on conflict (second, session) do update set placed = flow.placed + excluded.placed;
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

-- Its rows have no key that would tell them apart for a subscriber, and are removed some time later. (It costs only where a
-- publication has the table.)
alter table timeline replica identity full;
