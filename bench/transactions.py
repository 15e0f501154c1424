"""Single-row transactions by pgbench, beside the same table in plaintext."""

import re
import statistics
import subprocess
import tempfile

from session import Session, alternate

ROWS = 100_000
VALUE = "lpad(:n::text, 40, '0')"
PREPARE = """
    DROP TABLE IF EXISTS plain_rows, encrypted_rows;
    CREATE TABLE plain_rows (id bigint PRIMARY KEY, x text);
    CREATE TABLE encrypted_rows (id bigint PRIMARY KEY, x fieldcrypt.encrypted);
    INSERT INTO plain_rows SELECT i, lpad(i::text, 40, '0') FROM generate_series(1, {rows}) AS i;
    INSERT INTO encrypted_rows SELECT i, fieldcrypt.encrypt_field(lpad(i::text, 40, '0')) FROM generate_series(1, {rows}) AS i;
    DROP TABLE IF EXISTS plain_inserts, encrypted_inserts;
    DROP SEQUENCE IF EXISTS ids;
    CREATE SEQUENCE ids CACHE 1000;
    CREATE TABLE plain_inserts (id bigint PRIMARY KEY, x text);
    CREATE TABLE encrypted_inserts (id bigint PRIMARY KEY, x fieldcrypt.encrypted)"""
NUMBER = f"\\set n random(1, {ROWS})\n"
SCRIPTS = {
    "insert": {
        "plaintext": NUMBER + f"INSERT INTO plain_inserts VALUES (nextval('ids'), {VALUE});",
        "encrypted": NUMBER + f"INSERT INTO encrypted_inserts VALUES (nextval('ids'), fieldcrypt.encrypt_field({VALUE}));",
    },
    "select": {
        "plaintext": NUMBER + "SELECT x FROM plain_rows WHERE id = :n;",
        "encrypted": NUMBER + "SELECT fieldcrypt.decrypt_field(x) FROM encrypted_rows WHERE id = :n;",
    },
}
# What the server does at a commit: waits for the disk, or does not.
KINDS = {
    "insert": ("insert", "on"),
    "insert, commit not waited for": ("insert", "off"),
    "select": ("select", "on"),
}


def measure(quick):
    """Transactions a second: {kind: {"plaintext" | "encrypted": [figures]}}."""
    seconds, repeats = (1, 2) if quick else (2, 11)
    with Session() as session:
        for statement in PREPARE.format(rows=ROWS).split(";"):
            session.run(statement)
        session.run("VACUUM (ANALYZE) plain_rows")
        session.run("VACUUM (ANALYZE) encrypted_rows")

        results = {}
        for kind, (scripts, commit) in KINDS.items():
            runs = {}
            for name, script in SCRIPTS[scripts].items():
                def run(script=script):
                    session.run("TRUNCATE plain_inserts, encrypted_inserts")
                    session.run("CHECKPOINT")
                    return pgbench(script, commit, seconds)
                runs[name] = run
            results[kind] = alternate(runs, repeats)
    return results


def pgbench(script, commit, seconds):
    with tempfile.NamedTemporaryFile("w", suffix=".sql") as file:
        file.write(script)
        file.flush()
        output = subprocess.run(
            ["env", f"PGOPTIONS=-c synchronous_commit={commit}", "pgbench", "--no-vacuum",
             "--protocol=prepared", "--client=1", f"--time={seconds}", f"--file={file.name}"],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=True).stdout
    return float(re.search(r"tps = ([0-9.]+)", output)[1])


def targets(results):
    return [("single-row inserts, of plaintext's rate", rate(results["insert"]), 0.95, "least")]


def rate(figures):
    """Of the medians: a wait for the disk falls on one run, not on a round."""
    return statistics.median(figures["encrypted"]) / statistics.median(figures["plaintext"])


def lines(results):
    yield ""
    yield "pgbench, single rows, transactions a second" + " " * 10 + "plaintext  encrypted   ratio"
    for kind, figures in results.items():
        plain, encrypted = figures["plaintext"], figures["encrypted"]
        yield (f"  {kind:<50} {statistics.median(plain):>10.0f} {statistics.median(encrypted):>10.0f}"
               f" {rate(figures):>7.3f}")
