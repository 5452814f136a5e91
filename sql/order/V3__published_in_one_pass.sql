-- Deletes the rows with these ids, which are published, and marks their orders: sides that are still READY become
-- IN_PROGRESS, and the deadline starts. The orders are updated, and so locked, in id order: the sessions of the relay
-- join by nested loops only, driven by the sorted ids. (Another order would cost no more than a deadlock and a retry.)
create or replace function remove_published(first_id bigint, last_id bigint, published bigint, deadline interval)
    returns void language plpgsql volatile as
$$
declare
    removed uuid[];
begin
    with gone as (delete from order_outbox where id between first_id and last_id returning order_id)
    select array_agg(order_id) into removed from gone;
    perform require_all_or_none(coalesce(cardinality(removed), 0), published);
    with marked as (
        update orders o
           set payment_status = case when o.payment_status = 'READY' then 'IN_PROGRESS' else o.payment_status end,
               stock_status = case when o.stock_status = 'READY' then 'IN_PROGRESS' else o.stock_status end,
               updated_at = clock_timestamp()
          from (select order_id from unnest(removed) as r (order_id) order by order_id) as sorted
         where o.order_id = sorted.order_id and (o.payment_status = 'READY' or o.stock_status = 'READY')
        returning o.order_id
    )
    insert into deadline (due_at, round, order_ids)
    select clock_timestamp() + deadline, 0, array_agg(order_id) from marked having count(*) > 0;
end
$$;
