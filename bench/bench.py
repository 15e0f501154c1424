#!/usr/bin/env python3
"""bench.py LIBRARY FOLDER [--quick] [--only PART]: measures the server that PGHOST and PGPORT name.

LIBRARY is the built crate `bare`; FOLDER gets bench.json and bench.svg, unless only a part is measured. Nothing here decides
whether the figures are good: the exit code is 0 whatever they are.
"""

import json
import pathlib
import sys
import time

import audit
import audited
import columns
import fields
import memory
import migration
import picture
import rotation
import tenants
import transactions
import usage
from session import Session, clock


def main():
    library, folder = sys.argv[1], pathlib.Path(sys.argv[2])
    quick = "--quick" in sys.argv
    began = time.time()
    set_up(library)
    results = {"about": about(quick)}
    if "--only" in sys.argv:
        part = sys.argv[sys.argv.index("--only") + 1]
        module = next(module for module, name in PARTS.items() if name == part)
        results[part] = module.measure(quick)
        for line in [*module.lines(results[part]), *judged(judgements(module, results[part]))]:
            print(line)
        return

    say("values by size")
    results["fields"], skipped = fields.measure(quick)
    say("tenants")
    results["tenants"] = tenants.measure(quick)
    say("memory")
    results["memory"] = memory.measure(quick)
    say("transactions")
    results["transactions"] = transactions.measure(quick)
    say("rotation")
    results["rotation"] = rotation.measure(quick)
    say("key use")
    results["usage"] = usage.measure(quick)
    say("audit log")
    results["audit"] = audit.measure(quick)
    say("audited tables")
    results["audited"] = audited.measure(quick)
    say("protected columns")
    results["columns"] = columns.measure(quick)
    say("encrypt_column")
    results["migration"] = migration.measure(quick)

    results["targets"] = [
        target for module, name in PARTS.items() for target in judgements(module, results[name])
    ]
    results["about"]["minutes"] = round((time.time() - began) / 60, 1)
    results["about"]["processor share"] = round(clock["cpu"] / clock["wall"], 3)
    (folder / "bench.json").write_text(json.dumps(rounded(results), indent=1) + "\n")
    (folder / "bench.svg").write_text(picture.draw(results))
    for line in report(results, skipped):
        print(line)


PARTS = {fields: "fields", tenants: "tenants", memory: "memory", transactions: "transactions",
         rotation: "rotation", usage: "usage", audit: "audit", audited: "audited", columns: "columns",
         migration: "migration"}


def judgements(module, results):
    return [{"what": what, "figure": figure, "limit": limit, "at": at[0] if at else "most"}
            for what, figure, limit, *at in module.targets(results)]


def say(what):
    print(f"==> measuring: {what}", flush=True)


def set_up(library):
    with Session() as session:
        session.run("CREATE EXTENSION pg_fieldcrypt")
        session.run("CREATE EXTENSION pgcrypto")
        for name, takes, gives in [
            ("bare_fetch", "text", "integer"),
            ("bare_fetch", "bytea", "integer"),
            ("bare_fetch", "fieldcrypt.encrypted", "integer"),
            ("bare_copy", "text", "text"),
            ("bare_gcm_seal", "text", "bytea"),
            ("bare_gcm_open", "bytea", "text"),
        ]:
            session.run(f"CREATE FUNCTION {name}({takes}) RETURNS {gives} LANGUAGE c STRICT AS '{library}', '{name}'")
        session.run(f"CREATE FUNCTION bare_trigger() RETURNS trigger LANGUAGE c AS '{library}', 'bare_trigger'")


def about(quick):
    with Session() as session:
        server = session.run("SELECT version()")
        extension = session.run("SELECT extversion FROM pg_extension WHERE extname = 'pg_fieldcrypt'")
    processors = [line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")]
    return {
        "server": server,
        "extension": extension,
        "processors": f"{len(processors)} × {processors[0] if processors else 'unknown'}",
        "how": "one backend, no JIT, no parallel workers; processor time of the backend, medians of rounds in turn;"
               " transactions and rotation by wall clock",
        "quick": quick,
    }


def report(results, skipped):
    about = results["about"]
    yield ""
    yield about["server"]
    yield f"pg_fieldcrypt {about['extension']}, {about['processors']}, {about['minutes']} minutes"
    yield about["how"]
    if about["processor share"] < 0.9:
        yield f"the machine was busy: the backend had a processor for {about['processor share']:.0%} of the time only"
    yield from skipped
    for module, name in PARTS.items():
        yield from module.lines(results[name])
    yield from judged(results["targets"])


def judged(targets):
    yield ""
    yield "targets"
    for target in targets:
        figure, limit = target["figure"], target["limit"]
        met = figure <= limit if target["at"] == "most" else figure >= limit
        yield f"  {'met   ' if met else 'MISSED'}  {target['what']:<68} {figure:>10.3f}  at {target['at']} {limit}"


def rounded(value):
    """Five digits are more than the figures are good for."""
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [rounded(item) for item in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value


main()
