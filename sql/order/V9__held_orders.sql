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
