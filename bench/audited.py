"""What it costs that changes of a table's rows are recorded, beside a row trigger that does nothing."""

from session import Session, alternate, ratio

NOTHING = "CREATE FUNCTION nothing() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$"
TABLES = ["no trigger", "a trigger that does nothing", "audited"]
STATEMENTS = {
    "INSERT": "INSERT INTO {table} SELECT i, 'name ' || i, fieldcrypt.encrypt_field(lpad(i::text, 40, '0')) FROM generate_series(1, {rows}) AS i",
    "UPDATE": "UPDATE {table} SET value = fieldcrypt.encrypt_field(lpad(id::text, 40, '1'))",
    "DELETE": "DELETE FROM {table}",
    "COPY": "COPY {table} FROM PROGRAM 'cat audited.copy'",
}


def measure(quick):
    """Processor time of one statement over many rows: statement → table → seconds of each round."""
    rows = 10_000 if quick else 100_000
    with Session() as session:
        session.run(NOTHING)
        for name in TABLES:
            session.run(f'CREATE TABLE "{name}" (id bigint PRIMARY KEY, name text, value fieldcrypt.encrypted)')
        session.run('CREATE TRIGGER nothing AFTER INSERT OR UPDATE OR DELETE ON "a trigger that does nothing" '
                    'FOR EACH ROW EXECUTE FUNCTION nothing()')
        session.run("SELECT fieldcrypt.audit_table('audited')")
        fill = STATEMENTS["INSERT"].format(table='"no trigger"', rows=rows)
        session.run(fill)
        session.run("COPY \"no trigger\" TO PROGRAM 'cat >audited.copy'")
        results = {}
        for kind, statement in STATEMENTS.items():
            def run(name):
                table = f'"{name}"'
                session.run(f"TRUNCATE {table}")
                if kind in ("UPDATE", "DELETE"):
                    session.run("SET session_replication_role = replica")
                    session.run(f"COPY {table} FROM PROGRAM 'cat audited.copy'")
                    session.run("SET session_replication_role = origin")
                return session.seconds(statement.format(table=table, rows=rows))
            runs = {name: lambda name=name: run(name) for name in TABLES}
            results[kind] = alternate(runs, 3 if quick else 7)
        return {"rows": rows, "statements": results}


def times(figures):
    """How many times what the same takes with a trigger that does nothing."""
    return ratio(figures["audited"], figures["a trigger that does nothing"])


def targets(results):
    for kind, figures in results["statements"].items():
        yield f"{kind} of an audited table, times the same with a row trigger that does nothing", times(figures), 2.5


def lines(results):
    yield ""
    yield f"{results['rows']} rows of an audited table, µs a row" + " " * 5 + "".join(f"{name:>29}" for name in TABLES) + "   times"
    for kind, figures in results["statements"].items():
        medians = [sorted(figures[name])[len(figures[name]) // 2] * 1e6 / results["rows"] for name in TABLES]
        yield f"  {kind:<38}" + "".join(f"{median:>29.2f}" for median in medians) + f"{times(figures):>8.2f}"
