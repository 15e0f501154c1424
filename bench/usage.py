"""What it costs that key use is counted, told and kept: fieldcrypt.audit_decrypt, preload."""

import os
import pathlib
import re
import shutil
import statistics
import subprocess
import tempfile

from session import Session, alternate, net, ratio, spread

ROWS = 1_000_000
LEVELS = ["off", "failures", "statements"]
CLIENTS = 16
SELECT = f"\\set n random(1, {ROWS})\nSELECT fieldcrypt.decrypt_field(x) FROM used WHERE id = :n;"
TABLE = f"""
    CREATE TABLE used (id bigint PRIMARY KEY, x fieldcrypt.encrypted);
    INSERT INTO used SELECT i, fieldcrypt.encrypt_field(lpad(i::text, 40, '0')) FROM generate_series(1, {ROWS}) AS i"""


def measure(quick):
    """Seconds of one statement over a million values; transactions a second of many sessions."""
    with Preloaded() as preloaded:
        for port in (None, preloaded.port):
            with Session(port=port) as session:
                for statement in TABLE.split(";"):
                    session.run(statement)
                session.run("VACUUM (ANALYZE) used")
        return {
            "statement": statement_of_many(preloaded.port, 3 if quick else 15),
            "sessions": many_sessions(preloaded.port, 1 if quick else 5, 2 if quick else 9),
        }


def statement_of_many(port, repeats):
    with Session(port=port) as session:
        def run(level):
            session.run(f"SET fieldcrypt.audit_decrypt = {level}")
            return session.seconds("SELECT count(fieldcrypt.decrypt_field(x)) FROM used")
        runs = {"scan": lambda: session.seconds("SELECT count(x) FROM used")}
        runs |= {level: lambda level=level: run(level) for level in LEVELS}
        return dict(alternate(runs, repeats))


def many_sessions(port, seconds, repeats):
    return dict(alternate({
        "without preload": lambda: pgbench(None, "failures", seconds),
        "preload": lambda: pgbench(port, "failures", seconds),
        "preload, statements": lambda: pgbench(port, "statements", seconds),
    }, repeats, turning=True))


def pgbench(port, level, seconds):
    with tempfile.NamedTemporaryFile("w", suffix=".sql") as file:
        file.write(SELECT)
        file.flush()
        options = f"PGOPTIONS=-c session_preload_libraries=pg_fieldcrypt -c fieldcrypt.audit_decrypt={level}"
        output = subprocess.run(
            ["env", options, "pgbench", "--no-vacuum", "--protocol=prepared", f"--client={CLIENTS}", "--jobs=2",
             f"--time={seconds}", f"--file={file.name}", *(["--port", str(port)] if port else [])],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=True).stdout
    return float(re.search(r"tps = ([0-9.]+)", output)[1])


class Preloaded:
    """Another server like the one that is measured, with the library preloaded."""

    def __init__(self, *more):
        self.more = "\n".join(more)
        home = pathlib.Path(os.environ["PGHOST"])
        self.port = int(os.environ["PGPORT"]) + 1
        self.data = home / "preloaded"
        self.log = home / "preloaded.log"
        self.settings = home / "data" / "postgresql.conf"

    def __enter__(self):
        run("initdb", "--pgdata", self.data, "--username", "postgres", "--auth", "trust", "--encoding", "UTF8",
            "--locale", "C.UTF-8", "--no-sync")
        settings = self.settings.read_text()
        (self.data / "postgresql.conf").write_text(
            f"{settings}\nport = {self.port}\nshared_preload_libraries = 'pg_fieldcrypt'\n{self.more}\n")
        run("pg_ctl", "--pgdata", self.data, "--log", self.log, "--wait", "start")
        with Session(port=self.port) as session:
            session.run("CREATE EXTENSION pg_fieldcrypt")
        return self

    def __exit__(self, *_):
        run("pg_ctl", "--pgdata", self.data, "--mode", "immediate", "--wait", "stop")
        shutil.rmtree(self.data)


def run(*command):
    subprocess.run([str(word) for word in command], check=True, stdin=subprocess.DEVNULL,
                   stdout=subprocess.DEVNULL)


def targets(results):
    statement, sessions = results["statement"], results["sessions"]
    for level in LEVELS[1:]:
        yield (f"decrypt a million values with audit_decrypt = {level}, of off",
               ratio(statement[level], statement["off"]), 1.02)
    yield (f"{CLIENTS} sessions of single-row decrypts with preload, of without",
           ratio(sessions["preload"], sessions["without preload"]), 0.97, "least")


def lines(results):
    yield ""
    yield "fieldcrypt.audit_decrypt, a million values in one statement     µs a row net of the scan    of off"
    for level in LEVELS:
        figures = net(results["statement"], level, "scan")
        yield (f"  {level:<60} {statistics.median(figures) * 1e6 / ROWS:>26.3f}"
               f" {ratio(results['statement'][level], results['statement']['off']):>9.3f}")
    yield f"{CLIENTS} sessions of single-row decrypts           transactions a second    of without    in the rounds"
    for name, figures in results["sessions"].items():
        least, most = spread(figures, results["sessions"]["without preload"])
        yield (f"  {name:<41} {statistics.median(figures):>26.0f}"
               f" {ratio(figures, results['sessions']['without preload']):>13.3f} {least:>9.3f} to {most:.3f}")
