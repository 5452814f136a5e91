-- Each time that an operator said that this database goes on where another one had written last. Kafka's positions carry
-- the latest number: of two databases with the same installation, that with the higher one goes on.
--
-- Additive: an instance of the version before neither looks at it nor writes it.
create table takeover (
    number      integer     primary key constraint takeover_number_positive check (number > 0),
    -- The databases that had written, as positions name them.
    origins     text[]      not null,
    -- The latest stored time of theirs. What one of them stores later was not taken over.
    accepted_to timestamptz not null,
    taken_at    timestamptz not null default clock_timestamp()
);

-- The relay's leaderships, noted before any of them publishes: of each of Kafka's producer ids the last epoch that was given
-- to a relay of this database. Positions carry theirs; one that is not known here was written by a copy of this database.
create table leadership (
    producer_id bigint      primary key,
    epoch       integer     not null,
    begun_at    timestamptz not null default clock_timestamp()
) with (fillfactor = 50);
