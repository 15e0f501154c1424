"""Rotation and re-encryption: beside plain updates, over many rows, beside an application, of many keys."""

import concurrent.futures
import os
import pathlib
import re
import secrets
import statistics
import threading
import time

import beside
from session import Session, alternate, ratio

DATABASE = "rotation"
ROWS = 300_000
BATCH = 1000
VALUE = "lpad(i::text, 40, '0')"
FINISHED_ROWS = 1_000_000
GROWING = [10_000, 1_000_000, 10_000_000]
TENANTS = 10_000
KEYS = 100_000

REENCRYPT = f"CALL fieldcrypt.reencrypt('moving', {BATCH}, 0)"
ROTATE = "CALL fieldcrypt.rotate_keys('default', 'benchmark', true)"
ACTIVE = "(SELECT key_id FROM fieldcrypt.encryption_keys WHERE tenant = 'default' AND state = 'active')"
BY_BLOCK, BY_KEY, ONE, TWO, SINGLY = (
    "UPDATE by ctid", "UPDATE by primary key", "reencrypt", "reencrypt, two sessions",
    "reencrypt, rows written one a transaction")


def measure(quick):
    with Session() as session:
        session.run(f"CREATE DATABASE {DATABASE}")
    with open_session() as session:
        session.run("CREATE EXTENSION pg_fieldcrypt")
    parts = {
        "rate": rate,
        "finished table": finished_table,
        "memory": memory,
        "application": lambda quick: beside.measure(open_session, DATABASE, beside.reencryption(ROTATE), quick),
        "keys": keys,  # the last: it changes the master key
    }
    results = {}
    for name, part in parts.items():
        began = time.time()
        results[name] = part(quick)
        print(f"    {name}: measured in {time.time() - began:.0f} s", flush=True)
    with Session() as session:
        session.run(f"DROP DATABASE {DATABASE}")
    return results


def open_session(*settings):
    return Session(*settings, database=DATABASE)


def rate(quick):
    """Seconds for all the rows, by the clock and of processor time: {name: {"seconds" | "processor": [figures]}}."""
    rows = ROWS // 10 if quick else ROWS
    with open_session() as session, open_session() as second:
        prepare(session, rows)
        # The verifying pass of re-encryption is in its time; an UPDATE has none.
        figures = alternate({
            BY_BLOCK: lambda: plain_update(session, "update_by_block", rows),
            BY_KEY: lambda: plain_update(session, "update_by_key", rows),
            ONE: lambda: reencryption([session], "written_at_once"),
            TWO: lambda: reencryption([session, second], "written_at_once"),
            SINGLY: lambda: reencryption([session], "written_singly"),
        }, 1 if quick else 4)
        session.run("DROP TABLE moving, written_at_once, written_singly")
    return {"rows": rows, "processors": os.cpu_count(), "figures": {name: split(pairs) for name, pairs in figures.items()}}


def split(pairs):
    return {"seconds": [wall for wall, _ in pairs], "processor": [cpu for _, cpu in pairs]}


def prepare(session, rows):
    """The values under an older key, to be copied; those written singly have no nonce block in common,
    so that decrypting derives a key for each."""
    session.run("CREATE TABLE moving (id bigint PRIMARY KEY, x fieldcrypt.encrypted)")
    session.run("CREATE UNLOGGED TABLE written_at_once (id bigint, x fieldcrypt.encrypted)")
    session.run("CREATE UNLOGGED TABLE written_singly (id bigint, x fieldcrypt.encrypted)")
    session.run(f"INSERT INTO written_at_once SELECT i, fieldcrypt.encrypt_field({VALUE}) FROM generate_series(1, {rows}) AS i")
    session.run(f"""
        SET synchronous_commit = off;
        DO $$ BEGIN
            FOR i IN 1 .. {rows} LOOP
                INSERT INTO written_singly VALUES (i, fieldcrypt.encrypt_field({VALUE}));
                COMMIT;
            END LOOP;
        END $$;
        RESET synchronous_commit""")
    session.run(ROTATE)
    session.run(f"""
        CREATE PROCEDURE update_by_block(INOUT updated bigint DEFAULT 0) LANGUAGE plpgsql AS $$
        DECLARE
            blocks bigint := pg_relation_size('moving') / current_setting('block_size')::bigint;
            step bigint := ceil({BATCH} * blocks::float8 / {rows});
            block bigint := 0;
            found_rows bigint;
        BEGIN
            WHILE block < blocks LOOP
                UPDATE moving SET x = x
                 WHERE ctid >= format('(%s,0)', block)::tid AND ctid < format('(%s,0)', least(block + step, blocks))::tid;
                GET DIAGNOSTICS found_rows = ROW_COUNT;
                updated := updated + found_rows;
                COMMIT;
                block := block + step;
            END LOOP;
        END $$""")
    session.run(f"""
        CREATE PROCEDURE update_by_key(INOUT updated bigint DEFAULT 0) LANGUAGE plpgsql AS $$
        DECLARE
            key bigint := 1;
            found_rows bigint;
        BEGIN
            WHILE key <= {rows} LOOP
                UPDATE moving SET x = x WHERE id >= key AND id < key + {BATCH};
                GET DIAGNOSTICS found_rows = ROW_COUNT;
                updated := updated + found_rows;
                COMMIT;
                key := key + {BATCH};
            END LOOP;
        END $$""")


def plain_update(session, procedure, rows):
    fill(session, "written_at_once")
    answers, *figure = timed(f"CALL {procedure}()", session)
    # New versions of rows may lie in the last block, and be updated again.
    assert rows <= int(answers[0]) < rows * 1.01, f"{procedure} updated {answers[0]} rows"
    return figure


def reencryption(sessions, source):
    fill(sessions[0], source)
    answers, *figure = timed(REENCRYPT, *sessions)
    check_moved(sessions[0], "moving", answers)
    return figure


def check_moved(session, table, answers):
    state = session.run(f"SELECT state FROM fieldcrypt_internal.reencryptions WHERE relation = '{table}'::regclass")
    left = session.run(f"SELECT count(*) FROM {table} WHERE fieldcrypt.key_id(x) <> {ACTIVE}")
    assert (state, left) == ("done", "0"), f"re-encryption is {state}, {left} rows are left: {answers}"


def fill(session, source):
    session.run(f"TRUNCATE moving; INSERT INTO moving SELECT * FROM {source}")
    session.run("VACUUM (ANALYZE) moving")
    session.run("CHECKPOINT")


def timed(sql, *sessions):
    """What they answer, the seconds until all of them have, and the processor time of their backends. By
    the clock, since a commit waits for the disk."""
    with concurrent.futures.ThreadPoolExecutor(len(sessions)) as pool:
        cpu, began = sum(session.processor_time() for session in sessions), time.perf_counter()
        answers = list(pool.map(lambda session: session.run(sql), sessions))
        return answers, time.perf_counter() - began, sum(session.processor_time() for session in sessions) - cpu


def finished_table(quick):
    """Seconds of a run that finds nothing to do, and of sequential scans."""
    with open_session() as session:
        session.run("CREATE TABLE finished (id bigint, x fieldcrypt.encrypted)")
        session.run(f"INSERT INTO finished SELECT i, fieldcrypt.encrypt_field({VALUE}) FROM generate_series(1, {FINISHED_ROWS}) AS i")
        session.run("VACUUM (ANALYZE) finished")
        session.run("CHECKPOINT")
        statements = {
            "reencrypt": f"CALL fieldcrypt.reencrypt('finished', {BATCH}, 0)",
            "count(*)": "SELECT count(*) FROM finished",
            "count(x)": "SELECT count(x) FROM finished",
        }
        figures = alternate(
            {name: lambda sql=sql: timed(sql, session)[1:] for name, sql in statements.items()}, 3 if quick else 9)
        session.run("DROP TABLE finished")
    return {name: split(pairs) for name, pairs in figures.items()}


def memory(quick):
    """Peak of a session's own memory while it re-encrypts a table: {rows: bytes}."""
    peaks = {}
    for rows in GROWING[:-1] if quick else GROWING:
        with open_session() as session:
            # Neither the log nor an index belongs to the question.
            session.run(f"""
                CREATE UNLOGGED TABLE growing AS
                SELECT fieldcrypt.encrypt_field('x') AS x FROM generate_series(1, {rows}) AS i""")
            session.run(ROTATE)
        with open_session() as session:
            with Peak(session) as peak:
                answer = session.run(f"CALL fieldcrypt.reencrypt('growing', {BATCH}, 0)")
            peaks[rows] = peak.bytes
            check_moved(session, "growing", answer)
            session.run("DROP TABLE growing")
    return peaks


class Peak:
    """Watches a backend's memory from beside. The kernel's own high-water mark counts shared buffers too,
    which grow with the table."""

    def __init__(self, session):
        self.status = session.process / "status"
        self.bytes = 0
        self.over = threading.Event()
        self.watcher = threading.Thread(target=self.watch)

    def watch(self):
        while True:
            over = self.over.wait(0.01)
            self.bytes = max(self.bytes, int(re.search(r"RssAnon:\s+(\d+)", self.status.read_text())[1]) * 1024)
            if over:
                break

    def __enter__(self):
        self.watcher.start()
        return self

    def __exit__(self, *_):
        self.over.set()
        self.watcher.join()


def keys(quick):
    """Seconds to rotate every tenant's key, and to wrap every key by another master key."""
    tenants, total = (TENANTS // 10, KEYS // 10) if quick else (TENANTS, KEYS)
    with open_session() as session:
        make_keys(session, "tenant", tenants)
        answers, seconds, processor = timed("CALL fieldcrypt.rotate_keys(force => true)", session)
        left = session.run("""
            SELECT count(*) FROM fieldcrypt.encryption_keys
             WHERE tenant LIKE 'tenant %' AND state = 'active' AND version < 2""")
        assert left == "0" and "WARNING" not in answers[0], f"rotation left {left} tenants: {answers[0][-300:]}"
        results = {"tenants": tenants, "rotate_keys": seconds, "rotate_keys, processor": processor, "keys": total}
        procedure = session.run("SELECT to_regproc('fieldcrypt.rotate_master_key')")
        if not procedure:
            return results | {"skipped": "this version has no rotate_master_key"}
        have = int(session.run("SELECT count(*) FROM fieldcrypt.encryption_keys"))
        make_keys(session, "other", total - have)
        file = pathlib.Path(session.run("SHOW fieldcrypt.master_key_file"))
    before = file.read_text()
    write_secret(file, secrets.token_hex(32) + "\n" + before)
    try:
        with open_session() as session:
            session.run("SELECT pg_reload_conf()")
        with open_session() as session:
            answers, seconds, processor = timed("CALL fieldcrypt.rotate_master_key()", session)
            left = session.run("""
                SELECT count(*) FROM fieldcrypt.encryption_keys
                 WHERE master_key_fingerprint <> (SELECT fingerprint FROM fieldcrypt.master_keys WHERE is_current)""")
            assert left == "0", f"{left} keys are not wrapped again: {answers[0]}"
            wrapped = session.run("SELECT count(DISTINCT master_key_fingerprint) FROM fieldcrypt.encryption_keys")
            switched = session.run("SELECT count(*) FROM fieldcrypt.master_keys")
            assert (wrapped, switched) == ("1", "2"), f"the master key is not another one: {answers[0]}"
    finally:
        # Databases other than this one, which is dropped, know the older key only.
        write_secret(file, before)
        with Session() as session:
            session.run("SELECT pg_reload_conf()")
    return results | {"rotate_master_key": seconds, "rotate_master_key, processor": processor}


def make_keys(session, name, count):
    """A transaction holds a lock for each tenant."""
    session.run(f"""
        DO $$ BEGIN
            FOR start IN 1 .. {count} BY 1000 LOOP
                PERFORM fieldcrypt.create_key('{name} ' || i) FROM generate_series(start, least(start + 999, {count})) AS i;
                COMMIT;
            END LOOP;
        END $$""")
    session.run("VACUUM (ANALYZE) fieldcrypt.encryption_keys")


def write_secret(file, text):
    """At one go: no session reads half of it."""
    other = file.with_suffix(".new")
    with open(os.open(other, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as out:
        out.write(text)
    other.rename(file)


def targets(results):
    rates, finished, peaks, kept = (results[name] for name in ["rate", "finished table", "memory", "keys"])
    seconds = {name: figures["seconds"] for name, figures in rates["figures"].items()}
    found = [(f"re-encryption, of the rate of {name}", ratio(seconds[name], seconds[ONE]), 0.8, "least")
             for name in [BY_BLOCK, BY_KEY]]
    found.append((f"re-encryption by two sessions, of one's rate ({rates['processors']} processors)",
                  ratio(seconds[ONE], seconds[TWO]), 1.6, "least"))
    found += beside.targets(results["application"])
    found.append((f"memory: peak over {max(peaks):,} rows above that over {min(peaks):,}, bytes",
                  peaks[max(peaks)] - peaks[min(peaks)], 1 << 20, "most"))
    found += [(f"re-encryption of a finished table, of {name}'s time",
               ratio(finished["reencrypt"]["seconds"], finished[name]["seconds"]), 1.2, "most")
              for name in ["count(*)", "count(x)"]]
    if "rotate_master_key" in kept:
        found.append((f"rotate_master_key, {kept['keys']:,} keys, seconds", kept["rotate_master_key"], 60, "most"))
    found.append((f"rotate_keys, {kept['tenants']:,} tenants, seconds", kept["rotate_keys"], 120, "most"))
    return found


def lines(results):
    rates, finished, peaks, kept = (results[name] for name in ["rate", "finished table", "memory", "keys"])
    yield ""
    title = f"re-encryption of {rates['rows']:,} rows, batches of {BATCH}, µs a row"
    yield f"{title:<57} clock  processor  of reencrypt's rate"
    for name, figures in rates["figures"].items():
        yield (f"  {name:<50} {median(figures['seconds']) * 1e6 / rates['rows']:>10.2f}"
               f" {median(figures['processor']) * 1e6 / rates['rows']:>10.2f}"
               f" {ratio(rates['figures'][ONE]['seconds'], figures['seconds']):>10.2f}")
    yield f"a finished table of {FINISHED_ROWS:,} rows, ms"
    for name, figures in finished.items():
        yield f"  {name:<50} {median(figures['seconds']) * 1e3:>10.1f} {median(figures['processor']) * 1e3:>10.1f}"
    yield "peak of the re-encrypting session's own memory"
    for rows, peak in peaks.items():
        yield f"  {rows:>10,} rows {peak >> 10:>36,} kB"
    yield from beside.lines(results["application"])
    yield "keys, seconds" + " " * 45 + "clock  processor"
    for what, count in [("rotate_keys", kept["tenants"]), ("rotate_master_key", kept["keys"])]:
        if what in kept:
            yield f"  {what} of {count:,}".ljust(52) + f" {kept[what]:>10.2f} {kept[what + ', processor']:>10.2f}"
        else:
            yield f"  {what}: skipped, {kept['skipped']}"


def median(figures):
    return statistics.median(figures)
