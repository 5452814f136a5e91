-- Which of the partition's leaders has written what lies before an offset: by it Kafka tells a consumer whether another history
-- of the log has taken its place meanwhile (KIP-320). It holds for the offset beside it; versions before this one move
-- `next_offset` alone.
alter table consumer_offset
    add column leader_epoch integer,
    add column epoch_offset bigint;
