-- Sequences by themselves, of a serial column, unlogged, altered, and rolled back.
\if :first
create sequence counter;
create sequence cached cache 20 increment 7;
create unlogged sequence unlogged_counter;
create table numbered (id serial primary key, g int generated always as identity, t text);
\endif
select count(nextval('counter')) from generate_series(1, 500);
select count(nextval('cached')) from generate_series(1, 100);
select nextval('unlogged_counter');
insert into numbered (t) select 'n' from generate_series(1, 300);
begin; select nextval('counter'); alter sequence counter restart with 5000; rollback;
select setval('cached', 100000 * :round, false);
alter sequence counter increment 3 maxvalue 1000000000;
alter sequence cached restart;
begin; create sequence never_counter; select nextval('never_counter'); rollback;
create sequence dropped_counter; select nextval('dropped_counter'); drop sequence dropped_counter;
truncate numbered restart identity;
insert into numbered (t) select 'n' from generate_series(1, 40);
