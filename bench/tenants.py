"""What many tenants cost: keys in the cache, keys not in it, keys made."""

import statistics

from session import Session, alternate, net, ratio

MOST = 100_000
TENANTS = [1, 1_000, MOST]
# In random order, but among the first MOST rows, and the next, and so on, every tenant equally often.
ROWS = 5 * MOST
# Rows of one statement: all of them; or with the most tenants, one of each.
STATEMENTS = {"": ROWS, ", one row each": MOST}
MISSES = 20_000
LARGE = "fieldcrypt.key_cache_size = 300000"
CALLS = {
    "encrypt": "fieldcrypt.encrypt_field(x, '', tenant)",
    "decrypt": "fieldcrypt.decrypt_field(sealed)",
}


def measure(quick):
    """Microseconds a row, net of the scan, and some single figures."""
    results = {"make a key": make_keys()}
    for tenants in TENANTS:
        results[f"first pass, {tenants} tenants"] = cold(tenants)
    results["warm"] = warm(3 if quick else 9)
    results["miss"] = miss(3 if quick else 5)
    return results


def make_keys():
    """Microseconds a tenant's first key takes. A transaction holds a lock for each tenant."""
    with Session(LARGE) as session:
        for tenants in TENANTS:
            session.run(f"""
                CREATE UNLOGGED TABLE tenants_{tenants} AS
                SELECT 'tenant ' || lpad((i % {tenants})::text, 6, '0') AS tenant,
                       left(repeat(md5(i::text), 2), 40) AS x, NULL::fieldcrypt.encrypted AS sealed
                  FROM generate_series(0, {ROWS - 1}) AS i ORDER BY i / {MOST}, md5(i::text)""")
        seconds = session.seconds("""
            DO $$ BEGIN
                FOR batch IN 0 .. 99 LOOP
                    PERFORM fieldcrypt.create_key('tenant ' || lpad(i::text, 6, '0'))
                       FROM generate_series(batch * 1000, batch * 1000 + 999) AS i;
                    COMMIT;
                END LOOP;
            END $$""")
        for tenants in TENANTS:
            # A table written at one go: an update would leave holes that a scan goes over.
            session.run(f"""
                CREATE UNLOGGED TABLE sealed_{tenants} AS
                SELECT tenant, x, fieldcrypt.encrypt_field(x, '', tenant) AS sealed FROM tenants_{tenants};
                DROP TABLE tenants_{tenants};
                ALTER TABLE sealed_{tenants} RENAME TO tenants_{tenants}""")
            session.run(f"VACUUM (ANALYZE) tenants_{tenants}")
        session.run("VACUUM (ANALYZE) fieldcrypt.encryption_keys")
    return seconds * 1e6 / MOST


def scan(operation, rows):
    columns = "count(x), count(tenant)" if operation == "encrypt" else "count(sealed)"
    return f"SELECT {columns} FROM {rows}"


def call(operation, rows):
    return f"SELECT count({CALLS[operation]}) FROM {rows}"


def cold(tenants):
    """Seconds of the first pass in a new session: library, master key, every key."""
    with Session(LARGE) as session:
        rows = few(tenants, tenants)
        session.run(scan("encrypt", rows))
        return session.seconds(call("encrypt", rows))


def warm(repeats):
    """All the tenants' keys are in the cache."""
    results = {}
    with Session(LARGE) as session:
        for operation in CALLS:
            for statement, count in STATEMENTS.items():
                runs = {}
                for tenants in TENANTS:
                    rows = few(tenants, count)
                    runs[f"scan {tenants}"] = lambda sql=scan(operation, rows): session.seconds(sql)
                    runs[tenants] = lambda sql=call(operation, rows): session.seconds(sql)
                figures = alternate(runs, repeats)
                results[operation + statement] = {
                    tenants: [seconds * 1e6 / count for seconds in net(figures, tenants, f"scan {tenants}")]
                    for tenants in TENANTS
                }
    return results


def few(tenants, count):
    return f"(SELECT * FROM tenants_{tenants} LIMIT {count}) AS rows"


def miss(repeats):
    """A cache of one key, and another tenant in every row."""
    results = {}
    with Session("fieldcrypt.key_cache_size = 1") as session:
        rows = few(MOST, MISSES)
        for operation in CALLS:
            figures = alternate({
                "scan": lambda: session.seconds(scan(operation, rows)),
                "miss": lambda: session.seconds(call(operation, rows)),
            }, repeats)
            results[operation] = [seconds * 1e6 / MISSES for seconds in net(figures, "miss", "scan")]
    return results


def targets(results):
    found = []
    for operation in CALLS:
        figures = results["warm"][operation]
        found.append((f"{operation}, 100,000 tenants in the cache, of one tenant's time",
                      ratio(figures[MOST], figures[1]), 2.0))
        found.append((f"{operation}, a key not in the cache, µs",
                      statistics.median(results["miss"][operation]), 10.0))
    return found


def lines(results):
    yield ""
    yield "tenants in random order, 40 bytes, µs a row net of the scan" + " " * 13 + "of one tenant's"
    for operation in CALLS:
        for tenants in TENANTS:
            for statement in STATEMENTS:
                figures = results["warm"][operation + statement]
                if tenants == MOST or not statement:
                    yield (f"  {operation}  {tenants:>7} tenants{statement or ', all in the cache':<20}"
                           f" {statistics.median(figures[tenants]):>19.3f} {ratio(figures[tenants], figures[1]):>14.2f}")
        yield f"  {operation}  a miss in every row {statistics.median(results['miss'][operation]):>34.3f}"
    for tenants in TENANTS:
        yield (f"  first pass of a new session over {tenants:>7} tenants"
               f" {results[f'first pass, {tenants} tenants'] * 1e3:>14.1f} ms in all")
    yield f"  making a tenant's first key {results['make a key']:>35.1f}"
