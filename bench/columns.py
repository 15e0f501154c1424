"""What a protected column costs that takes plaintext, beside the same table with a column of type text."""

from session import Session, alternate, ratio

PLAIN, TRIGGER, PROTECTED = "text", "text, a trigger that does nothing", "protected"
# What any column costs that is sealed by a trigger and checked by a constraint, whatever these do: what is stored is longer.
FLOOR = "text as long as sealed, trigger, check"
TABLES = [PLAIN, TRIGGER, FLOOR, PROTECTED]
INSERT = "INSERT INTO {table} SELECT i, 0, lpad(i::text, {length}, '0') FROM generate_series(1, {rows}) AS i"
LENGTH, SEALED_LENGTH = 40, 40 + 59
STATEMENTS = {
    "INSERT": INSERT,
    "UPDATE of another column": "UPDATE {table} SET n = n + 1",
    "UPDATE of the column": "UPDATE {table} SET value = lpad(id::text, {length}, '1')",
    "COPY": "COPY {table} FROM PROGRAM 'cat {length}.copy'",
}
BY_HAND = "SELECT count(fieldcrypt.decrypt_field(value, fieldcrypt.context('bench.value', id))) FROM protected"
BY_VIEW = "SELECT count(value) FROM decrypted_protected"


def measure(quick):
    """Processor time of one statement over many rows: statement → table → seconds of each round."""
    rows, rounds = (10_000, 3) if quick else (100_000, 7)
    with Session() as session:
        for name in TABLES:
            value = "fieldcrypt.encrypted_text" if name == PROTECTED else "text"
            check = ", CHECK (value <> '')" if name == FLOOR else ""
            session.run(f'CREATE TABLE "{name}" (id bigint PRIMARY KEY, n integer, value {value}{check})')
            if name in (TRIGGER, FLOOR):
                session.run(f'CREATE TRIGGER nothing BEFORE INSERT OR UPDATE ON "{name}" FOR EACH ROW EXECUTE FUNCTION bare_trigger()')
        session.run(f"SELECT fieldcrypt.protect_column('{PROTECTED}', 'value', name => 'bench.value')")
        session.run(f"SELECT fieldcrypt.create_decrypted_view('{PROTECTED}')")
        for length in (LENGTH, SEALED_LENGTH):
            session.run(f'TRUNCATE "{PLAIN}"')
            session.run(INSERT.format(table=f'"{PLAIN}"', rows=rows, length=length))
            session.run(f"COPY \"{PLAIN}\" TO PROGRAM 'cat >{length}.copy'")
        results = {}
        for kind, statement in STATEMENTS.items():
            def run(name):
                values = {"table": f'"{name}"', "rows": rows, "length": SEALED_LENGTH if name == FLOOR else LENGTH}
                session.run("TRUNCATE {table}".format(**values))
                if kind.startswith("UPDATE"):
                    session.run(INSERT.format(**values))
                return session.seconds(statement.format(**values))
            results[kind] = alternate({name: lambda name=name: run(name) for name in TABLES}, rounds)
        session.run(f"TRUNCATE {PROTECTED}")
        session.run(INSERT.format(table=PROTECTED, rows=rows, length=LENGTH))
        reads = {"by hand": lambda: session.seconds(BY_HAND), "by the view": lambda: session.seconds(BY_VIEW)}
        return {"rows": rows, "statements": results, "reads": alternate(reads, rounds)}


def targets(results):
    statements = results["statements"]
    insert = statements["INSERT"]
    yield "INSERT of a protected column, times text with a trigger that does nothing", ratio(insert[PROTECTED], insert[TRIGGER]), 2.0
    update = statements["UPDATE of another column"]
    yield "UPDATE of another column, times the same without protection", ratio(update[PROTECTED], update[PLAIN]), 1.15
    reads = results["reads"]
    yield "SELECT through the view, times decrypt_field by hand", ratio(reads["by the view"], reads["by hand"]), 1.1


def lines(results):
    yield ""
    yield f"{results['rows']} rows of a column that takes plaintext, µs a row" + "".join(f"{name:>40}" for name in TABLES)
    for kind, figures in {**results["statements"], "SELECT": results["reads"]}.items():
        medians = [(name, sorted(figures[name])[len(figures[name]) // 2] * 1e6 / results["rows"]) for name in figures]
        shown = "".join(f"{median:>40.2f}" if kind != "SELECT" else f"{f'{name}: {median:.2f}':>40}" for name, median in medians)
        yield f"  {kind:<48}{shown}"
