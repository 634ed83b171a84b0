-- Tablespace: both opcodes.
-- psql needs the variable "directory": an empty one, which belongs to the server's user.

-- CREATE: with a path, with none.
create tablespace tablespace_outside location :'directory';
set allow_in_place_tablespaces = on;
create tablespace tablespace_in_place location '';
-- DROP.
drop tablespace tablespace_outside;
drop tablespace tablespace_in_place;
