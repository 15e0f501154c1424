"""`encrypt_column`: beside plain updates, beside an application, and how long it keeps others from the table."""

import threading

import beside
from rotation import median, split, timed
from session import Session, alternate, ratio

DATABASE = "migration"
ROWS = 1_000_000
BATCH = 1000
UPDATE, ENCRYPT = "UPDATE by primary key", "encrypt_column"
RENAMES, SWAP = "three renames", "the swap of encrypt_column"
ENCRYPTION = "CALL fieldcrypt.encrypt_column('moving', 'value', swap => {})"
PACE = 5000


def measure(quick):
    with Session() as session:
        session.run(f"CREATE DATABASE {DATABASE}")
    with open_session() as session:
        session.run("CREATE EXTENSION pg_fieldcrypt")
    results = {
        "rate": rate(quick),
        "locks": locks(quick),
        "application": beside.measure(open_session, DATABASE, encryption(), quick),
    }
    with Session() as session:
        session.run(f"DROP DATABASE {DATABASE}")
    return results


def open_session(*settings):
    return Session(*settings, database=DATABASE)


def rate(quick):
    """Seconds for all the rows, by the clock and of processor time: {name: {"seconds" | "processor": [figures]}}."""
    rows = ROWS // 20 if quick else ROWS
    with open_session() as session:
        session.run(f"""
            CREATE PROCEDURE update_by_key() LANGUAGE plpgsql AS $$
            BEGIN
                FOR key IN 1 .. {rows} BY {BATCH} LOOP
                    UPDATE moving SET value = lpad(id::text, 40, '1') WHERE id >= key AND id < key + {BATCH};
                    COMMIT;
                END LOOP;
            END $$""")

        def run(call, kind):
            make_table(session, rows)
            figure = timed(call, session)[1:]
            found = session.run("SELECT format_type(atttypid, NULL) FROM pg_attribute WHERE attrelid = 'moving'::regclass AND attname = 'value'")
            assert found == kind, f"the column is of type {found}"
            return figure

        # All that encrypt_column does is in its time: rows are written, opened and compared, and its constraints validated.
        figures = alternate({
            UPDATE: lambda: run("CALL update_by_key()", "text"),
            ENCRYPT: lambda: run(f"CALL fieldcrypt.encrypt_column('moving', 'value', batch_size => {BATCH})", "fieldcrypt.encrypted_text"),
        }, 1 if quick else 3)
    return {"rows": rows, "figures": {name: split(pairs) for name, pairs in figures.items()}}


def make_table(session, rows):
    session.run("DROP TABLE IF EXISTS moving CASCADE; CREATE TABLE moving (id bigint PRIMARY KEY, value text)")
    session.run(f"INSERT INTO moving SELECT i, lpad(i::text, 40, '0') FROM generate_series(1, {rows}) AS i")
    session.run("VACUUM (ANALYZE) moving")
    session.run("CHECKPOINT")


def locks(quick):
    """Milliseconds that somebody who reads a row at a time waited at most, for the swap alone: {name: [figures]}."""
    with open_session() as session, open_session() as reader:
        session.run("""
            CREATE UNLOGGED TABLE is_over (x boolean);
            CREATE PROCEDURE read_rows(INOUT longest float8 DEFAULT 0) LANGUAGE plpgsql AS $$
            DECLARE
                began timestamptz;
            BEGIN
                WHILE NOT EXISTS (SELECT FROM is_over) LOOP
                    began := clock_timestamp();
                    PERFORM FROM moving WHERE id = 1;
                    longest := greatest(longest, extract(epoch FROM clock_timestamp() - began) * 1000);
                    COMMIT;
                END LOOP;
            END $$""")

        def run(statement, before="SELECT"):
            make_table(session, 1000)
            session.run(before)
            session.run("TRUNCATE is_over")
            answer = []
            worker = threading.Thread(target=lambda: answer.append(float(reader.run("CALL read_rows()"))))
            worker.start()
            session.run("SELECT pg_sleep(0.2)")
            session.run(statement)
            session.run("INSERT INTO is_over VALUES (true)")
            worker.join()
            return answer[0]

        names = ["value TO value_before", "id TO key", "key TO id"]
        renames = "; ".join(f"ALTER TABLE moving RENAME COLUMN {name}" for name in names)
        return alternate({
            RENAMES: lambda: run(f"BEGIN; {renames}; COMMIT"),
            SWAP: lambda: run(ENCRYPTION.format(True), ENCRYPTION.format(False)),
        }, 3 if quick else 9)


def encryption():
    call = "CALL fieldcrypt.encrypt_column('pgbench_accounts', 'secret', rows_per_second => {})"
    return beside.Work("text", "{x}", {
        "beside encrypt_column, no throttle": call.format(0),
        f"beside encrypt_column, {PACE} rows a second": call.format(PACE),
    }, undo)


def undo(session):
    """The column as it was, to be encrypted again."""
    if session.run("SELECT count(*) FROM fieldcrypt.column_migrations WHERE table_name::text ~ 'pgbench_accounts'") != "0":
        session.run("CALL fieldcrypt.undo_encrypt_column('pgbench_accounts', 'secret', verify => false)")


def targets(results):
    figures, waits = results["rate"]["figures"], results["locks"]
    yield (f"encrypt_column, of the rate of {UPDATE}", ratio(figures[UPDATE]["seconds"], figures[ENCRYPT]["seconds"]), 0.5, "least")
    yield "the swap of encrypt_column: a reader's longest wait, times three renames'", ratio(waits[SWAP], waits[RENAMES]), 2.0
    yield from beside.targets(results["application"])


def lines(results):
    rates, waits = results["rate"], results["locks"]
    yield ""
    title = f"encrypt_column of {rates['rows']:,} rows, batches of {BATCH}, µs a row"
    yield f"{title:<57} clock  processor"
    for name, figures in rates["figures"].items():
        yield (f"  {name:<50} {median(figures['seconds']) * 1e6 / rates['rows']:>10.2f}"
               f" {median(figures['processor']) * 1e6 / rates['rows']:>10.2f}")
    yield "the longest wait of who reads row by row, ms"
    for name, figures in waits.items():
        yield f"  {name:<50} {median(figures):>10.2f}"
    yield from beside.lines(results["application"])
