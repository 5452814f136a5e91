-- Handled dead letters are removed some time later, the oldest first; those that nobody has handled are counted.
create index dead_letter_handled_at on dead_letter (handled_at);
