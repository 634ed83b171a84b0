-- An extension that writes WAL of its own by generic records.
\if :first
create extension bloom;
create table bloomed (a int, b int, c text);
insert into bloomed select g, g % 100, md5(g::text) from generate_series(1, 5000) g;
create index bloomed_ab on bloomed using bloom (a, b) with (length = 80, col1 = 2, col2 = 4);
create unlogged table bloomed_unlogged (a int);
create index on bloomed_unlogged using bloom (a);
\endif
insert into bloomed select g, g % 100, md5(g::text) from generate_series(1, 2000 * :scale) g;
delete from bloomed where a % 3 = 0;
vacuum bloomed;
insert into bloomed select g, g, 'again' from generate_series(1, 1000) g;
update bloomed set b = b + 1 where a % 50 = 0;
reindex index bloomed_ab;
