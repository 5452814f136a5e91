create table payment_outbox (
    id        bigint generated always as identity primary key,
    stored_at timestamptz not null,
    order_id  uuid        not null,
    messages  json        not null
);

-- balance + the account's COMPLETED payments = deposited, at every instant (I2). The upper caps are
-- checked at the door, not here: a refund must not be refusable.
create table account (
    user_name text   primary key,
    balance   bigint not null constraint account_balance_not_negative check (balance >= 0),
    deposited bigint not null
) with (fillfactor = 50);

-- One row an order, never removed: it is the deduplication (I3). A row is placed NEW and decided within
-- one transaction; CANCELLED remembers a compensation that came before its request.
create table payment (
    order_id    uuid        primary key,
    user_name   text,
    amount      bigint,
    status      text        not null default 'NEW',
    reason_code text,
    reason_from text,
    -- the compensation requests that were confirmed: one delivered again is not confirmed again
    confirmed   uuid[]      not null default '{}',
    created_at  timestamptz not null default clock_timestamp(),
    updated_at  timestamptz not null default clock_timestamp(),
    constraint payment_status check (status in ('NEW', 'COMPLETED', 'FAILED', 'COMPENSATED', 'CANCELLED')),
    constraint payment_effect_is_known check
        (status not in ('COMPLETED', 'COMPENSATED') or (user_name is not null and amount > 0)),
    constraint payment_reason check
        ((status = 'FAILED') = (reason_code is not null) and (reason_code is null) = (reason_from is null))
) with (fillfactor = 50);

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
    insert into payment_outbox (stored_at, order_id, messages)
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
    delete from payment_outbox where id between first_id and last_id;
    get diagnostics found_count = row_count;
    perform require_all_or_none(found_count, published);
end
$$;
