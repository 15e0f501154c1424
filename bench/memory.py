"""Memory: of a cached key, over many rows, of one large value."""

import tenants
from session import Session

KEYS = tenants.MOST
LARGE_FIELD = 100_000_000


def measure(quick):
    return {"bytes a cached key": cached_key(), **many_rows(quick), **large_field()}


def cached_key():
    """The difference that a pass over all tenants makes which keeps the keys, after one that does not."""
    rows = tenants.few(tenants.MOST, KEYS)
    every_tenant = f"SELECT count(fieldcrypt.encrypt_field(x, '', tenant)) FROM {rows}"
    with Session("fieldcrypt.key_cache_size = 1") as session:
        session.run(every_tenant)
        before = session.private_bytes()
        session.run("SET fieldcrypt.key_cache_size = 300000")
        session.run(every_tenant)
        return (session.private_bytes() - before) / KEYS


def many_rows(quick):
    """What a session has grown by after many rows, when it had seen some."""
    rows = 100_000 if quick else 1_000_000
    with Session() as session:
        def pass_over(rows):
            session.run("SELECT count(fieldcrypt.decrypt_field(fieldcrypt.encrypt_field(i::text || ' of many')))"
                        f" FROM generate_series(1, {rows}) AS i")
        for _ in range(3):
            pass_over(rows // 10)
        before = session.private_bytes()
        for _ in range(3):
            pass_over(rows)
        return {"growth over rows": session.private_bytes() - before, "rows": 3 * rows}


def large_field():
    """A value of 100 MB there and back, or the error that refuses it."""
    with Session() as session:
        session.run("CREATE TEMP TABLE large (x text, sealed fieldcrypt.encrypted)")
        session.run(f"INSERT INTO large VALUES (repeat('x', {LARGE_FIELD}))")
        try:
            before = session.peak_bytes()
            seal = session.seconds("UPDATE large SET sealed = fieldcrypt.encrypt_field(x)")
            same = "SELECT fieldcrypt.decrypt_field(sealed) = x FROM large"
            unseal = session.seconds(same)
            answer = session.run(same)
            outcome = "works" if answer == "t" else f"WRONG: {answer}"
            return {"100 MB": outcome, "seal": seal, "unseal": unseal, "peak": session.peak_bytes() - before}
        except RuntimeError as error:
            return {"100 MB": f"refused: {error}"}


def targets(results):
    return [
        ("memory of a cached key, bytes", results["bytes a cached key"], 1024),
        (f"memory that {results['rows']:,} rows leave behind, bytes", results["growth over rows"], 1 << 20),
    ]


def lines(results):
    yield ""
    yield "memory"
    yield f"  a cached key {results['bytes a cached key']:>50.0f} bytes"
    yield f"  growth of a session over {results['rows']:>9,} rows {results['growth over rows']:>27,} bytes"
    yield f"  a field of 100 MB: {results['100 MB']}" + (
        f", stored in {results['seal']:.2f} s, read and compared in {results['unseal']:.2f} s, peak {results['peak'] >> 20} MB"
        if "seal" in results else "")
