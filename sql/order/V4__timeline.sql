-- In the order in which a writer takes them: an instance of the version before may be storing orders.
lock table idempotency_key, orders in access exclusive mode;

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

-- Of orders that wait for an answer: when their requests were stored, by when they were published, and their ids.
alter table orders
    add column stored_at       timestamptz,
    add column published_at    timestamptz,
    add column payment_request uuid,
    add column stock_request   uuid;

-- Marks the orders of the rows with these ids, which are published: sides that are still READY become IN_PROGRESS, and the
-- deadline starts. Then deletes the rows. The orders are updated, and so locked, in id order: the sessions of the relay join
-- by nested loops only, driven by the sorted ids. (Another order would cost no more than a deadlock and a retry.)
--
-- An order with a side that is READY has asked for no compensation yet: its row is that of its two requests. Their ids are cut
-- out as text, each the first field of its message: a JSON operator would refuse a row that holds an escaped NUL, and with it
-- all rows published together. (No string holds what is looked for: its quotes are escaped there.)
create or replace function remove_published(first_id bigint, last_id bigint, published bigint, deadline interval)
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
