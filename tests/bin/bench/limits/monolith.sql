\set user random(0, 99)
\set item random(0, 99)
\set price random(100, 999)
\set quantity random(1, 5)
begin;
insert into orders (order_id, user_name, item_name, price, quantity, order_status, payment_status, stock_status, traceparent)
    values (gen_random_uuid(), 'user-' || :user, 'item-' || :item, :price, :quantity, 'COMPLETED', 'COMPLETED', 'COMPLETED',
            '00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01');
update account set balance = balance - :price where user_name = 'user-' || :user;
update item set quantity = quantity - :quantity where item_name = 'item-' || :item;
commit;
