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
    insert into stock_outbox (stored_at, order_id, messages)
        select now_stored, id, message::json
          from unnest(order_ids, messages) with ordinality as row (id, message, place)
         order by place;
end
$$;

-- Deletes the rows with these ids, which are published.
create function remove_published(first_id bigint, last_id bigint, published bigint) returns void
    language plpgsql volatile as
$$
declare
    found_count bigint;
begin
    delete from stock_outbox where id between first_id and last_id;
    get diagnostics found_count = row_count;
    perform require_all_or_none(found_count, published);
end
$$;
