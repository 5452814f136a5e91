-- How many orders were placed, and how many of them are settled, by the second in which their ids were drawn: what tells
-- how much waits without looking at the orders. Every session counts in rows of its own, so that none waits for another;
-- a row changes for as long as the orders of its second settle, so that none is changed for ever.
create table order_flow (
    second  bigint  not null, -- since 1970
    session integer not null,
    placed  bigint  not null default 0,
    settled bigint  not null default 0,
    primary key (second, session)
) with (fillfactor = 50);

-- As before, and counts what was placed.
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
                on conflict do nothing;
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
            on conflict do nothing
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
