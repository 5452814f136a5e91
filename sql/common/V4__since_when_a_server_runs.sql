-- Which server a row was committed on: since when it runs, and the database. Empty where others than superusers may not know it; then
-- a relay reads all that it publishes. (A statement that names a function which may not be run fails, also where it does not run it.)
create function outbox_server() returns text language plpgsql stable as $$
begin
    if has_function_privilege('pg_postmaster_start_time()', 'execute') then
        return concat_ws(' ', extract(epoch from pg_postmaster_start_time()), current_database());
    end if;
    return '';
end
$$;
-- instances that run already append through it from now on, whatever is revoked by default here
grant execute on function outbox_server() to public;
