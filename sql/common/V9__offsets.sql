-- Which of the partition's leaders has written what lies before an offset: by it Kafka tells a consumer whether another history
-- of the log has taken its place meanwhile (KIP-320). It holds for the offset beside it; versions before this one move
-- `next_offset` alone.
alter table consumer_offset
    add column leader_epoch integer,
    add column epoch_offset bigint;

-- Moves offsets by compare-and-set, one after the other in the order of their keys, which is that of their locks. Returns where
-- each row is now (its ctid), in the order given; null where it is not at the offset that it was believed to be at.
--
-- `seen_at` is where the caller has seen the row last: it is found there at once. By its key it is found as well, past all the
-- versions that its moves have left behind, and these stay for as long as the oldest snapshot in the database. An index on the
-- offset would not help: an update that changes an index looks through all versions for another row of the same key.
create function move_offsets(
    topic_ids uuid[], partitions integer[], offsets_before bigint[], offsets_after bigint[], leader_epochs integer[],
    seen_at text[]
) returns text[] language plpgsql volatile as
$$
declare
    step  record;
    place tid;
    moved text[] := array_fill(null::text, array[cardinality(topic_ids)]);
begin
    for step in
        select *
          from unnest(topic_ids, partitions, offsets_before, offsets_after, leader_epochs, seen_at)
               with ordinality as s (topic_id, partition, was, becomes, leader_epoch, seen_at, number)
         order by s.topic_id, s.partition
    loop
        place := step.seen_at;
        update consumer_offset o
           set next_offset = step.becomes, epoch_offset = step.becomes, leader_epoch = step.leader_epoch
         where o.ctid = place
           and o.topic_id = step.topic_id and o.partition = step.partition and o.next_offset = step.was
        returning o.ctid into place;
        if not found then
            update consumer_offset o
               set next_offset = step.becomes, epoch_offset = step.becomes, leader_epoch = step.leader_epoch
             where o.topic_id = step.topic_id and o.partition = step.partition and o.next_offset = step.was
            returning o.ctid into place;
        end if;
        if found then
            moved[step.number] := place;
        end if;
    end loop;
    return moved;
end
$$;
