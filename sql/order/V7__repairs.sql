-- In the order in which a writer takes them: an instance of the version before may be storing orders.
lock table idempotency_key, orders in access exclusive mode;

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

-- Of an order whose requests are gone from Kafka not all is known; it is given back. `repaired`: there are rows in `repair`.
alter table orders
    alter column user_name drop not null,
    alter column item_name drop not null,
    alter column price drop not null,
    alter column quantity drop not null,
    add column repaired boolean not null default false,
    add constraint orders_unknown_if_lost check
        (num_nulls(user_name, item_name, price, quantity) = 0 or reason_code = 'LOST' and reason_code is not null) not valid;
