-- Two messages of one order are one outbox row: they leave in one Kafka transaction or not at all (I5).
create table order_outbox (
    id        bigint generated always as identity primary key,
    stored_at timestamptz not null,
    order_id  uuid        not null,
    messages  json        not null
);

-- Statuses change in place, so the rows have room on their page and no index holds what changes: all
-- updates are HOT. Of an order whose requests are gone from Kafka not all is known; it is given back.
create table orders (
    order_id        uuid        primary key,
    user_name       text,
    item_name       text,
    price           bigint,
    quantity        bigint,
    order_status    text        not null default 'IN_PROGRESS',
    payment_status  text        not null default 'READY',
    stock_status    text        not null default 'READY',
    reason_code     text,
    reason_from     text,
    traceparent     text        not null,
    created_at      timestamptz not null default clock_timestamp(),
    updated_at      timestamptz not null default clock_timestamp(),
    -- Of orders that wait for an answer: when their requests were stored, by when they were published, and their ids.
    stored_at       timestamptz,
    published_at    timestamptz,
    payment_request uuid,
    stock_request   uuid,
    repaired        boolean     not null default false, -- there are rows in `repair`
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
        ((reason_code is null) = (reason_from is null) and (order_status = 'FAILED') = (reason_code is not null)),
    constraint orders_unknown_if_lost check
        (num_nulls(user_name, item_name, price, quantity) = 0 or reason_code = 'LOST' and reason_code is not null)
) with (fillfactor = 50);

-- The unique index makes the second of two equal requests wait for the fate of the first.
create table idempotency_key (
    idempotency_key text        primary key,
    order_id        uuid        not null,
    created_at      timestamptz not null default clock_timestamp()
);
-- Keys are removed some time later, the oldest first.
create index idempotency_key_created_at on idempotency_key (created_at);

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

-- The order's story: what its messages have told. A row for each answer that changed the order, with what it answered, and one
-- for each compensation request, which may stay unconfirmed for long; insert-only. One index, at whose right end the rows
-- arrive (order ids sort by time). The columns stand by their size, so that a row has no gaps.
create table timeline (
    order_id              uuid        not null,
    message_id            uuid        not null,
    answered_id           uuid,
    noted_at              timestamptz not null, -- when order handled the answer, or asked to compensate
    stored_at             timestamptz,
    published_at          timestamptz,
    answered_stored_at    timestamptz,
    answered_published_at timestamptz,
    answered_taken_up_at  timestamptz,
    record_offset         bigint,
    answered_offset       bigint,
    partition             integer,
    attempt               integer,
    answered_partition    integer,
    answered_attempt      integer,
    type                  text        not null,
    reason_code           text
);
create index timeline_order_id on timeline (order_id);
-- Its rows have no key that would tell them apart for a subscriber, and are removed some time later. (It costs only where a
-- publication has the table.)
alter table timeline replica identity full;

-- What was done because a database had come back older: an order that this database had lost was rebuilt from Kafka or given
-- back, a side whose answer contradicts what is recorded was asked to compensate. `side` is null where both are meant;
-- `message_id` is the answer that showed it; `done_at` is null while a confirmation is waited for.
create table repair (
    id          bigint generated always as identity primary key,
    order_id    uuid        not null,
    kind        text        not null constraint repair_kind check
                    (kind in ('REBUILT', 'SUPERSEDED', 'LOST', 'ASKED_BACK', 'CONTRADICTED')),
    side        text        constraint repair_side check (side in ('payment', 'stock')),
    message_id  uuid        not null,
    detail      text        not null,
    repaired_at timestamptz not null,
    done_at     timestamptz
);
create index repair_order_id on repair (order_id);
-- The open ones are counted, the others removed some time later, the oldest first.
create index repair_done_at on repair (done_at);

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
-- A key that stands is held to the end of the transaction, so that it can't be removed meanwhile; one that was removed between
-- the two statements is inserted again. Without that its order would be stored and the key not. Only the conflicts that are
-- meant are passed over: another one (of a key that PostgreSQL draws, say) is an error.
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

-- Marks the orders of the rows with these ids, which are published: sides that are still READY become IN_PROGRESS, and the
-- deadline starts. Then deletes the rows. The orders are updated, and so locked, in id order: the sessions of the relay join
-- by nested loops only, driven by the sorted ids. (Another order would cost no more than a deadlock and a retry.)
--
-- An order with a side that is READY has asked for no compensation yet: its row is that of its two requests. Their ids are cut
-- out as text, each the first field of its message: a JSON operator would refuse a row that holds an escaped NUL, and with it
-- all rows published together. (No string holds what is looked for: its quotes are escaped there.)
create function remove_published(first_id bigint, last_id bigint, published bigint, deadline interval)
    returns void language plpgsql volatile as
$$
declare
    found_count bigint;
begin
    with marked as (
        update orders o
           set payment_status = case when o.payment_status = 'READY' then 'IN_PROGRESS' else o.payment_status end,
               stock_status = case when o.stock_status = 'READY' then 'IN_PROGRESS' else o.stock_status end,
               stored_at = gone.stored_at, published_at = clock_timestamp(),
               payment_request = nullif(left(split_part(gone.messages::text, '{"id":"', 2), 36), '')::uuid,
               stock_request = nullif(left(split_part(gone.messages::text, '{"id":"', 3), 36), '')::uuid,
               updated_at = clock_timestamp()
          from (select order_id, stored_at, messages from order_outbox
                 where id between first_id and last_id order by order_id) as gone
         where o.order_id = gone.order_id and (o.payment_status = 'READY' or o.stock_status = 'READY')
        returning o.order_id
    )
    insert into deadline (due_at, round, order_ids)
    select clock_timestamp() + deadline, 0, array_agg(order_id) from marked having count(*) > 0;
    delete from order_outbox where id between first_id and last_id;
    get diagnostics found_count = row_count;
    perform require_all_or_none(found_count, published);
end
$$;

-- As remove_published, for when the row of one of the orders is held by somebody else: those are left as they are, and what has
-- been published of them is known by their deadline, which starts all the same.
create function remove_published_around(first_id bigint, last_id bigint, published bigint, deadline interval)
    returns void language plpgsql volatile as
$$
declare
    free        uuid[];
    found_count bigint;
begin
    select array_agg(order_id) into free
      from (select o.order_id from order_outbox b join orders o on o.order_id = b.order_id
             where b.id between first_id and last_id order by o.order_id for update of o skip locked) as locked;
    with gone as (
        select order_id, stored_at, messages from order_outbox where id between first_id and last_id
    ), marked as (
        update orders o
           set payment_status = case when o.payment_status = 'READY' then 'IN_PROGRESS' else o.payment_status end,
               stock_status = case when o.stock_status = 'READY' then 'IN_PROGRESS' else o.stock_status end,
               stored_at = gone.stored_at, published_at = clock_timestamp(),
               payment_request = nullif(left(split_part(gone.messages::text, '{"id":"', 2), 36), '')::uuid,
               stock_request = nullif(left(split_part(gone.messages::text, '{"id":"', 3), 36), '')::uuid,
               updated_at = clock_timestamp()
          from gone
         where o.order_id = gone.order_id and o.order_id = any (free)
           and (o.payment_status = 'READY' or o.stock_status = 'READY')
        returning o.order_id
    ), due as (
        select order_id from marked
         union
        select order_id from gone where not order_id = any (coalesce(free, '{}'))
    )
    insert into deadline (due_at, round, order_ids)
    select clock_timestamp() + deadline, 0, array_agg(order_id) from due having count(*) > 0;
    delete from order_outbox where id between first_id and last_id;
    get diagnostics found_count = row_count;
    perform require_all_or_none(found_count, published);
end
$$;
