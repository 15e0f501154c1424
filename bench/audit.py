"""How fast events are written to the audit log, whether each is there once, and what verifying the log takes."""

import json
import threading
import time

from session import Session
from usage import Preloaded

SETTINGS = "fieldcrypt.audit_queue_size = '64MB'"
RATE = 10_000
TABLE = "CREATE TABLE kept AS SELECT fieldcrypt.encrypt_field('kept', 'place') AS value"
# One failure, told with its SQLSTATE to whoever counts.
FAIL = """
CREATE FUNCTION fail(times integer) RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
    codes jsonb := '{}';
BEGIN
    FOR i IN 1 .. times LOOP
        BEGIN
            PERFORM fieldcrypt.decrypt_field(value) FROM kept;
        EXCEPTION WHEN OTHERS THEN
            codes := jsonb_set(codes, ARRAY[SQLSTATE], to_jsonb(coalesce((codes ->> SQLSTATE)::integer, 0) + 1));
        END;
    END LOOP;
    RETURN codes;
END $$"""
EVENTS = "SELECT coalesce(sum(value_count), 0) FROM fieldcrypt.audit_log WHERE event = 'decrypt_failed'"
GAPS = "SELECT coalesce(sum(value_count), 0) FROM fieldcrypt.audit_log WHERE event = 'audit_gap'"


def measure(quick):
    with Preloaded(SETTINGS) as preloaded, Session(port=preloaded.port) as session:
        session.run(TABLE)
        session.run(FAIL)
        rows = 50_000 if quick else 1_000_000
        return {
            "verified, a tenth": verified(session, preloaded.port, rows // 10),
            "written a second": backlog(session, preloaded.port, 20_000 if quick else 200_000),
            "a minute": {
                policy: steady(session, preloaded.port, policy, 5 if quick else 60) for policy in ("log", "error")
            },
            "verified": verified(session, preloaded.port, rows),
        }


def backlog(session, port, events):
    """Events a second, of a queue that nobody emptied for a while."""
    before = int(session.run(EVENTS))
    with Session(port=port) as holder:
        holder.run("BEGIN; LOCK TABLE fieldcrypt.audit_log IN SHARE ROW EXCLUSIVE MODE")
        session.run(f"SELECT fail({events})")
        holder.run("COMMIT")
        began = time.perf_counter()
        while int(session.run("SELECT ring_used FROM fieldcrypt.audit_status()")) > 0:
            time.sleep(0.02)
        took = time.perf_counter() - began
    written = int(session.run(EVENTS)) - before
    return {"events": written, "seconds": took, "rate": written / took}


def steady(session, port, policy, seconds):
    """Failures at a fixed rate: how many were told to their callers or refused, and what became of them.

    What finds no room is counted as a gap, whether the statement is refused or not.
    """
    session.run(f"ALTER SYSTEM SET fieldcrypt.audit_on_overflow = {policy}")
    session.run("SELECT pg_reload_conf()")
    time.sleep(0.5)
    written, gaps = int(session.run(EVENTS)), int(session.run(GAPS))
    told, refused = 0, 0
    began = time.perf_counter()
    with Session(port=port) as failing:
        for second in range(seconds * 10):
            codes = json.loads(failing.run(f"SELECT fail({RATE // 10})"))
            told += codes.get("KF002", 0)
            refused += codes.get("KF026", 0)
            time.sleep(max(0, began + (second + 1) / 10 - time.perf_counter()))
    took = time.perf_counter() - began
    most = int(session.run("SELECT ring_used FROM fieldcrypt.audit_status()"))
    while int(session.run("SELECT ring_used FROM fieldcrypt.audit_status()")) > 0:
        time.sleep(0.05)
    time.sleep(1)  # gaps come with the next events, and what is written twice would come late
    return {
        "rate": (told + refused) / took, "told": told, "refused": refused, "left in the queue": most,
        "written": int(session.run(EVENTS)) - written, "gaps": int(session.run(GAPS)) - gaps,
    }


def unaccounted(figures):
    """How far what is in the log is from what happened: events that are missing, or there twice."""
    return abs(figures["told"] + figures["refused"] - figures["written"] - figures["gaps"])


def verified(session, port, rows):
    """Seconds and memory of the verification of a log of at least so many rows."""
    have = int(session.run("SELECT count(*) FROM fieldcrypt.audit_log"))
    if have < rows:
        session.run(f"SELECT fail({rows - have})")
    while int(session.run("SELECT ring_used + unsealed_rows FROM fieldcrypt.audit_status()")) > 0:
        time.sleep(0.2)
    time.sleep(5)  # a checkpoint is due
    have = int(session.run("SELECT count(*) FROM fieldcrypt.audit_log"))
    with Session(port=port) as verifier:
        verifier.run("SELECT count(*) FROM fieldcrypt.audit_log")
        before = verifier.private_bytes()
        began = time.perf_counter()
        with Peak(verifier) as peak:
            summary = verifier.run("SELECT status || ' ' || detail FROM fieldcrypt.verify_audit_log() LIMIT 1")
        took = time.perf_counter() - began
    return {"rows": have, "seconds": took, "MB more": (peak.bytes - before) / 1e6, "summary": summary}


class Peak:
    """The most memory of its own that a backend has meanwhile, looked at every few milliseconds.

    The kernel's own mark counts shared memory, too: that grows with the table that is read.
    """

    def __init__(self, session):
        self.session = session
        self.bytes = 0
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self.watch)

    def watch(self):
        while True:
            self.bytes = max(self.bytes, self.session.private_bytes())
            if self.ended.wait(0.005):
                return

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.ended.set()
        self.thread.join()


def targets(results):
    yield "events that the worker writes a second", results["written a second"]["rate"], 20_000, "least"
    for policy, figures in results["a minute"].items():
        yield (f"events lost or doubled of {RATE} failures a second for a minute, on overflow: {policy}",
               unaccounted(figures), 0)
    million = results["verified"]["seconds"] * 1e6 / results["verified"]["rows"]
    yield "seconds to verify a million rows of the log", million, 10
    more = results["verified"]["MB more"] - 1.5 * results["verified, a tenth"]["MB more"]
    yield "peak of memory to verify the log, MB beyond 1.5 times that for a tenth", more, 2


def lines(results):
    written = results["written a second"]
    yield ""
    yield f"audit log: {written['events']} events waiting are written at {written['rate']:.0f} a second"
    for policy, figures in results["a minute"].items():
        yield (f"  on overflow {policy}: {figures['rate']:.0f} failures a second; {figures['told']} told, "
               f"{figures['refused']} refused; {figures['written']} written, {figures['gaps']} counted as gaps")
    for verified in (results["verified, a tenth"], results["verified"]):
        yield (f"  {verified['rows']} rows are verified in {verified['seconds']:.1f} s, {verified['MB more']:.1f} MB more "
               f"memory at the peak ({verified['summary'][:60]})")
