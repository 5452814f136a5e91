-- Two messages of one order are one outbox row: they leave in one Kafka transaction or not at all (I5).
create table order_outbox (
    id        bigint generated always as identity primary key,
    stored_at timestamptz not null,
    order_id  uuid        not null,
    messages  json        not null
);

-- Statuses change in place, so the rows have room on their page and no index holds what changes: all
-- updates are HOT.
create table orders (
    order_id       uuid        primary key,
    user_name      text        not null,
    item_name      text        not null,
    price          bigint      not null,
    quantity       bigint      not null,
    order_status   text        not null default 'IN_PROGRESS',
    payment_status text        not null default 'READY',
    stock_status   text        not null default 'READY',
    reason_code    text,
    reason_from    text,
    traceparent    text        not null,
    created_at     timestamptz not null default clock_timestamp(),
    updated_at     timestamptz not null default clock_timestamp(),
    constraint orders_order_status check (order_status in ('IN_PROGRESS', 'COMPLETED', 'FAILED')),
    constraint orders_payment_status check (payment_status in
        ('READY', 'IN_PROGRESS', 'COMPLETED', 'FAILED', 'COMPENSATING', 'COMPENSATED')),
    constraint orders_stock_status check (stock_status in
        ('READY', 'IN_PROGRESS', 'COMPLETED', 'FAILED', 'COMPENSATING', 'COMPENSATED')),
    constraint orders_completed_by_both check
        ((order_status = 'COMPLETED') = (payment_status = 'COMPLETED' and stock_status = 'COMPLETED')),
    constraint orders_failed_by_a_side check
        ((order_status = 'FAILED') = (payment_status in ('FAILED', 'COMPENSATING', 'COMPENSATED')
                                      or stock_status in ('FAILED', 'COMPENSATING', 'COMPENSATED'))),
    constraint orders_reason check
        ((reason_code is null) = (reason_from is null) and (order_status = 'FAILED') = (reason_code is not null))
) with (fillfactor = 50);

-- The unique index makes the second of two equal requests wait for the fate of the first.
create table idempotency_key (
    idempotency_key text        primary key,
    order_id        uuid        not null,
    created_at      timestamptz not null default clock_timestamp()
);

-- When to look at orders again: one row for a whole batch, so that an order costs no index entry of its
-- own. round 0: a side still IN_PROGRESS is asked to compensate; later rounds: a compensation not yet
-- confirmed is asked again.
create table deadline (
    id        bigint generated always as identity primary key,
    due_at    timestamptz not null,
    round     integer     not null,
    order_ids uuid[]      not null
);
create index deadline_due_at on deadline (due_at);

-- Stores a batch of new orders with their outbox rows: one call, so that no client round trip lies under
-- the append lock. Keys are inserted in their order, against deadlocks between two writers. Answers, for
-- each request, the id of the order that stands for it: its own, or that of an earlier request with its
-- key. A call sent again with the same ids changes nothing.
create function place_orders(
    order_ids uuid[], user_names text[], item_names text[], prices bigint[], quantities bigint[],
    keys text[], traceparents text[], messages text[]
) returns uuid[] language plpgsql volatile as
$$
declare
    standing uuid[];
    placed   uuid[];
begin
    insert into idempotency_key (idempotency_key, order_id)
        select key, id from unnest(keys, order_ids) with ordinality as request (key, id, place)
         where key is not null order by key, place
        on conflict do nothing;
    -- a statement of its own: it sees the keys whose inserts were waited for
    select array_agg(coalesce(k.order_id, request.id) order by place) into standing
      from unnest(keys, order_ids) with ordinality as request (key, id, place)
      left join idempotency_key k on k.idempotency_key = request.key;
    with request as (
        select * from unnest(order_ids, user_names, item_names, prices, quantities, traceparents, standing)
            with ordinality as r (id, user_name, item_name, price, quantity, traceparent, stands, place)
    ), inserted as (
        insert into orders (order_id, user_name, item_name, price, quantity, traceparent)
            select id, user_name, item_name, price, quantity, traceparent
              from request where id = stands order by id
            on conflict do nothing
            returning order_id
    )
    select array_agg(order_id) into placed from inserted;
    perform append_outbox('order_outbox', array_agg(id order by place), array_agg(message order by place))
       from unnest(order_ids, messages) with ordinality as row (id, message, place)
      where id = any (placed)
     having count(*) > 0;
    return standing;
end
$$;
