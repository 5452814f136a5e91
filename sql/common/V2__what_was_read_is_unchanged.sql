-- A batch that was decided on what was read without locks is committed by one statement, which touches a row only where it
-- still is as it was read. Called with how many it has touched: where they are fewer than wanted, nothing of the statement stays.
create function require_unchanged(touched bigint, wanted bigint) returns void
    language plpgsql immutable as
$$
begin
    if touched <> wanted then
        raise exception 'of % rows % are as they were read: the batch is handled again under locks', wanted, touched
            using errcode = 'serialization_failure';
    end if;
end
$$;
