-- A table of one column, of the type that is asked for.
CREATE TYPE mood AS ENUM ('calm', 'cross');
CREATE TABLE probe (v :column);
GRANT SELECT, INSERT, DELETE ON probe TO clinic;
