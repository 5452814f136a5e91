-- The position travels in the records themselves now, not as a group's offset. A leader of the version before does not look
-- for it there, and one of this version not at the offset; so no relay of that version may run, leading or standing by, and
-- nothing may be left that one might have published. Its instances can't be started any more.
do $$
declare
    outbox  text;
    waiting bigint;
begin
    if exists (select from pg_stat_activity where datname = current_database() and application_name like '%-relay') then
        raise exception 'an instance of an older version is running: stop all of them, then start this one';
    end if;
    for outbox in select table_name from information_schema.tables
                   where table_schema = current_schema()
                     and table_name in ('order_outbox', 'payment_outbox', 'stock_outbox')
    loop
        execute format('select count(*) from %I', outbox) into waiting;
        if waiting > 0 then
            raise exception '% rows wait in %: start the older version until they are published, stop it, then start this one',
                waiting, outbox;
        end if;
    end loop;
end
$$;
update schema_compat set min_version = 2;
