"""pgbench on a table that is being re-encrypted, or a column of it encrypted, beside the same table left alone."""

import os
import pathlib
import re
import statistics
import subprocess
import tempfile
import threading
import time
from dataclasses import dataclass

from session import alternate, ratio

CLIENTS = 2
SCRIPT = """\
\\set aid random(1, 100000 * {scale})
\\set bid random(1, {scale})
\\set tid random(1, 10 * {scale})
\\set delta random(-5000, 5000)
BEGIN;
UPDATE pgbench_accounts SET abalance = abalance + :delta,
    secret = {value} WHERE aid = :aid;
SELECT abalance FROM pgbench_accounts WHERE aid = :aid;
UPDATE pgbench_tellers SET tbalance = tbalance + :delta WHERE tid = :tid;
UPDATE pgbench_branches SET bbalance = bbalance + :delta WHERE bid = :bid;
INSERT INTO pgbench_history (tid, bid, aid, delta, mtime) VALUES (:tid, :bid, :aid, :delta, CURRENT_TIMESTAMP);
END;
"""
ALONE = "alone"


@dataclass
class Work:
    """What goes on beside pgbench. `value` makes a value of the column from the text {x}; `calls` are the name of a pace
    and what is called again and again; `renew` makes that there is something to do again."""
    column: str
    value: str
    calls: dict
    renew: object


def reencryption(rotate):
    return Work("fieldcrypt.encrypted", "fieldcrypt.encrypt_field({x})", {
        "beside re-encryption, no throttle": "CALL fieldcrypt.reencrypt('pgbench_accounts', rows_per_second => 0)",
        "beside re-encryption, default throttle": "CALL fieldcrypt.reencrypt('pgbench_accounts')",
    }, lambda session: session.run(rotate))


def measure(open_session, database, work, quick):
    """Of each run: {name: {"rate" | "p99" | "moved": [figures]}}; p99 is in milliseconds, and `moved` is
    rows that the work beside moved in a second."""
    scale, seconds, repeats = (1, 2, 1) if quick else (10, 4, 4)
    with open_session() as session:
        prepare(session, database, work, scale)

        def run(call):
            session.run("VACUUM pgbench_accounts, pgbench_tellers, pgbench_branches")
            session.run("TRUNCATE pgbench_history")
            work.renew(session)
            session.run("CHECKPOINT")
            before = updates(session)
            began = time.perf_counter()
            if call is None:
                figure = pgbench(database, work, scale, seconds)
            else:
                with Beside(open_session, call, work):
                    figure = pgbench(database, work, scale, seconds)
            took = time.perf_counter() - began
            time.sleep(0.2)  # the sessions have ended
            moved = updates(session) - before - figure.pop("transactions")
            assert (moved > 0) == (call is not None), f"{moved} rows were moved"
            return figure | {"moved": moved / took}

        calls = {ALONE: None} | work.calls
        figures = alternate({name: lambda call=call: run(call) for name, call in calls.items()}, repeats)
        session.run("DROP TABLE pgbench_accounts, pgbench_branches, pgbench_history, pgbench_tellers")
    return {
        "scale": scale,
        "figures": {name: {what: [run[what] for run in runs] for what in runs[0]} for name, runs in figures.items()},
    }


def prepare(session, database, work, scale):
    initialize(database, scale, "dt")
    session.run(f"ALTER TABLE pgbench_accounts ADD COLUMN secret {work.column}")
    session.run(f"INSERT INTO pgbench_branches SELECT i, 0 FROM generate_series(1, {scale}) AS i")
    session.run(f"INSERT INTO pgbench_tellers SELECT i, (i - 1) / 10 + 1, 0 FROM generate_series(1, 10 * {scale}) AS i")
    session.run(f"""
        INSERT INTO pgbench_accounts
        SELECT i, (i - 1) / 100000 + 1, 0, '', {value(work, "i")}
          FROM generate_series(1, 100000 * {scale}) AS i""")
    initialize(database, scale, "pv")


def value(work, number):
    return work.value.format(x=f"lpad({number}::text, 40, '0')")


def initialize(database, scale, steps):
    subprocess.run(["pgbench", "--initialize", "--quiet", f"--init-steps={steps}", f"--scale={scale}", database],
                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)


def updates(session):
    """Of the table's rows, ever. A session tells at its end; one that stays, a second late."""
    return int(session.run("SELECT n_tup_upd FROM pg_stat_user_tables WHERE relname = 'pgbench_accounts'"))


def pgbench(database, work, scale, seconds):
    with tempfile.TemporaryDirectory() as folder:
        script = pathlib.Path(folder) / "script.sql"
        script.write_text(SCRIPT.format(scale=scale, value=value(work, ":aid")))
        output = subprocess.run(
            ["pgbench", "--no-vacuum", "--protocol=prepared", f"--client={CLIENTS}", f"--time={seconds}",
             f"--file={script}", "--log", f"--log-prefix={folder}/log", database],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=True).stdout
        # The third word of a line is the transaction's latency in microseconds.
        latencies = sorted(int(line.split()[2]) for log in pathlib.Path(folder).glob("log.*") for line in open(log))
    transactions = int(re.search(r"transactions actually processed: (\d+)", output)[1])
    failed = re.search(r"number of failed transactions: (\d+)", output)
    assert failed is None or failed[1] == "0", output
    return {
        "rate": float(re.search(r"tps = ([0-9.]+)", output)[1]),
        "p99": latencies[len(latencies) * 99 // 100] / 1000,
        "transactions": transactions,
    }


class Beside:
    """Does the work in another session, again and again, for as long as the block lasts."""

    def __init__(self, open_session, call, work):
        self.open_session, self.call, self.renew = open_session, call, work.renew
        self.over = threading.Event()
        self.session = open_session()
        self.error = None
        self.worker = threading.Thread(target=self.work)

    def work(self):
        try:
            while not self.over.is_set():
                answer = self.session.run(self.call)
                if "WARNING" in answer:
                    raise RuntimeError(answer)
                self.renew(self.session)
        except RuntimeError as error:
            if not (self.over.is_set() and "canceling statement due to user request" in str(error)):
                self.error = error

    def __enter__(self):
        self.worker.start()
        time.sleep(0.3)  # it has begun
        return self

    def __exit__(self, *_):
        self.over.set()
        with self.open_session() as other:
            while self.worker.is_alive():
                other.run(f"SELECT pg_cancel_backend({self.session.process.name})")
                self.worker.join(0.2)
        self.session.close()
        if self.error is not None:
            raise self.error


def targets(results):
    figures = results["figures"]
    found = []
    # Without a throttle first, then with one.
    for name, rate, latency in zip([name for name in figures if name != ALONE], [0.7, 0.95], [2.0, 1.2]):
        found.append((f"pgbench {name}: rate", ratio(figures[name]["rate"], figures[ALONE]["rate"]), rate, "least"))
        found.append((f"pgbench {name}: p99", ratio(figures[name]["p99"], figures[ALONE]["p99"]), latency, "most"))
    return found


def lines(results):
    yield (f"pgbench, {CLIENTS} clients, scale {results['scale']}, {os.cpu_count()} processors"
           + " " * 10 + "transactions/s     p99 ms   moved/s")
    for name, figures in results["figures"].items():
        yield (f"  {name:<50} {statistics.median(figures['rate']):>10.0f} {statistics.median(figures['p99']):>10.2f}"
               f" {statistics.median(figures['moved']):>9.0f}")
