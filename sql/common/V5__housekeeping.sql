-- Handled dead letters are removed some time later, the oldest first.
create index dead_letter_handled_at on dead_letter (handled_at) where handled_at is not null;
