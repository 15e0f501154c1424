"""What encrypting and decrypting one value costs, by its size, beside the competitors."""

import statistics

from session import Session, alternate, net, ratio

# Bytes of the value, rows of the table, passes over it in one measurement.
SIZES = [
    (16, 300_000, 1),
    (40, 300_000, 1),
    (256, 200_000, 1),
    (1024, 100_000, 1),
    (16384, 4_000, 5),
    (1 << 20, 64, 5),
]
REPEATS = 9
INLINE = 2000  # longer values lie in the TOAST table

KEY, IV = "'\\x" + "17" * 32 + "'::bytea", "'\\x" + "71" * 16 + "'::bytea"


class Competitor:
    """Text in, ciphertext out, text again; `{x}` is the value. With `extension` it is one that the
    server may have; `prepare` readies it and the session."""

    def __init__(self, name, sealed_type, seal, unseal, largest=1 << 30, rows=None, extension=None, prepare=()):
        self.name, self.type, self.seal, self.unseal = name, sealed_type, seal, unseal
        self.largest, self.rows = largest, rows
        self.extension, self.prepare = extension, prepare


FIELDCRYPT = Competitor("fieldcrypt", "fieldcrypt.encrypted",
                        "fieldcrypt.encrypt_field({x})", "fieldcrypt.decrypt_field({x})")
BARE = Competitor("bare AES-GCM", "bytea", "bare_gcm_seal({x})", "bare_gcm_open({x})")
PGCRYPTO = Competitor("pgcrypto encrypt_iv", "bytea",
                      f"encrypt_iv(convert_to({{x}}, 'UTF8'), {KEY}, {IV}, 'aes-cbc')",
                      f"convert_from(decrypt_iv({{x}}, {KEY}, {IV}, 'aes-cbc'), 'UTF8')")
COMPETITORS = [
    FIELDCRYPT,
    BARE,
    PGCRYPTO,
    # So slow that a few rows say it, and its scan is nothing beside it.
    Competitor("pgcrypto pgp_sym", "bytea", "pgp_sym_encrypt({x}, 'a password')",
               "pgp_sym_decrypt({x}, 'a password')", largest=1024, rows=100),
    Competitor("pgsodium", "bytea",
               "pgsodium.crypto_aead_det_encrypt(convert_to({x}, 'UTF8'), ''::bytea, 1)",
               "convert_from(pgsodium.crypto_aead_det_decrypt({x}, ''::bytea, 1), 'UTF8')",
               rows=20_000, largest=1024, extension="pgsodium",
               prepare=["INSERT INTO pgsodium.key (id, key_type, key_id) VALUES (gen_random_uuid(), 'aead-det', 1)"]),
    Competitor("column_encrypt", "encrypted_text", "({x})::encrypted_text", "({x})::text",
               largest=1024, extension="column_encrypt",
               prepare=["SELECT cipher_key_disable_log()",
                        "SELECT register_cipher_key('a data key', 'aes', 'a passphrase')",
                        "SELECT load_key('a passphrase')"]),
]


def measure(quick):
    """Microseconds a row, net of the scan: {size: {"encrypt" | "decrypt": {name: [figures]}}}."""
    results = {}
    with Session() as session:
        present, skipped = available(session)
        for size, rows, passes in SIZES:
            if quick:
                rows = max(8, rows // 5)
            competitors = [competitor for competitor in present if size <= competitor.largest]
            fill(session, competitors, size, rows)
            results[size] = {
                "encrypt": cost(session, competitors, size, rows, passes, quick, "seal"),
                "decrypt": cost(session, competitors, size, rows, passes, quick, "unseal"),
            }
            print(f"    {size} bytes: measured", flush=True)
    return results, skipped


def available(session):
    """The competitors that this server has, and a line for each that it does not."""
    installed = session.run("SELECT name FROM pg_available_extensions").splitlines()
    present, skipped = [], []
    for competitor in COMPETITORS:
        try:
            if competitor.extension is not None:
                if competitor.extension not in installed:
                    raise RuntimeError("this server does not have it")
                session.run(f"CREATE EXTENSION {competitor.extension}")
                for statement in competitor.prepare:
                    session.run(statement)
            sealed = competitor.seal.format(x="'a value'::text")
            session.run(f"SELECT {competitor.unseal.format(x=sealed)}")
            present.append(competitor)
        except RuntimeError as error:
            if competitor.extension is None:
                raise
            skipped.append(f"{competitor.name}: skipped, {str(error).splitlines()[0]}")
    return present, skipped


def fill(session, competitors, size, rows):
    """A table for each competitor, with what it made of the values; `plain` has the values."""
    create(session, "plain", "text")
    session.run(f"""
        INSERT INTO plain
        SELECT left(repeat(md5(i::text), {size // 32 + 1}), {size}) FROM generate_series(1, {rows}) AS i""")
    for competitor in competitors:
        create(session, table(competitor), competitor.type)
        limit = f"LIMIT {competitor.rows}" if competitor.rows else ""
        sealed = competitor.seal.format(x="x")
        session.run(f"INSERT INTO {table(competitor)} SELECT {sealed} FROM (SELECT x FROM plain {limit}) AS v")
        opened = competitor.unseal.format(x="s.x")
        wrong = session.run(f"SELECT count(*) FROM (SELECT x FROM {table(competitor)} LIMIT 3) AS s "
                            f"WHERE {opened} NOT IN (SELECT x FROM plain LIMIT 3)")
        assert wrong == "0", f"{competitor.name} does not give back what it got"
    # In the buffers, hint bits written: nothing that the first reader would have to do is left.
    for name in ["plain", *map(table, competitors)]:
        session.run(f"VACUUM (ANALYZE) {name}")
        session.run(f"SELECT sum(octet_length(x::text)) FROM {name}")
    session.run("CHECKPOINT")


def table(competitor):
    return '"sealed by ' + competitor.name + '"'


def create(session, name, column_type):
    session.run(f"DROP TABLE IF EXISTS {name}; CREATE UNLOGGED TABLE {name} (x {column_type});"
                f"ALTER TABLE {name} ALTER x SET STORAGE EXTERNAL")


def cost(session, competitors, size, rows, passes, quick, operation):
    """The scan that counts is of the very table that the function is called on. For a value in the
    TOAST table, fetching it belongs to the scan."""
    def stopwatch(expression, name, rows=None):
        source = name if rows is None else f"(SELECT x FROM {name} LIMIT {rows}) AS few"
        if passes > 1:
            source += f", generate_series(1, {passes})"
        return lambda: session.seconds(f"SELECT count({expression}) FROM {source}")

    scan = "x" if size <= INLINE else "bare_fetch(x)"
    runs = {"scan": stopwatch(scan, "plain"), "copy": stopwatch("bare_copy(x)", "plain")}
    scans, counts = {"copy": "scan"}, {"copy": rows}
    slow = {}
    for competitor in competitors:
        name = competitor.name
        source = "plain" if operation == "seal" else table(competitor)
        expression = getattr(competitor, operation).format(x="x")
        counts[name] = competitor.rows or rows
        scans[name] = "scan"
        if operation == "unseal" or competitor.rows:
            scans[name] = f"scan for {name}"
        into = slow if competitor.rows else runs
        if scans[name] != "scan":
            into[scans[name]] = stopwatch(scan, source, competitor.rows)
        into[name] = stopwatch(expression, source, competitor.rows)

    figures = alternate(runs, 3 if quick else REPEATS) | alternate(slow, 1 if quick else 3)
    microseconds = {
        name: [seconds * 1e6 / (counts[name] * passes) for seconds in net(figures, name, scans[name])]
        for name in scans
    }
    microseconds["scan"] = [seconds * 1e6 / (rows * passes) for seconds in figures["scan"]]
    return microseconds


def targets(results):
    """What the project promises: (text, figure, limit)."""
    found = []
    for operation in ["encrypt", "decrypt"]:
        small, large = results[40][operation], results[16384][operation]
        found.append((f"{operation} 40 bytes, of pgcrypto encrypt_iv's time",
                      ratio(small[FIELDCRYPT.name], small[PGCRYPTO.name]), 0.2))
        found.append((f"{operation} 40 bytes, of a bare AES-GCM call's time",
                      ratio(small[FIELDCRYPT.name], small[BARE.name]), 1.5))
        found.append((f"{operation} 16 KB, of a bare AES-GCM call's time",
                      ratio(large[FIELDCRYPT.name], large[BARE.name]), 1.3))
    return found


def lines(results):
    """The table: the median cost of a value."""
    names = ["scan", "copy", *(competitor.name for competitor in COMPETITORS)]
    for operation in ["encrypt", "decrypt"]:
        yield ""
        yield f"{operation}, µs a value net of the scan" + " " * 12 + "of bare   of encrypt_iv"
        for size, by_operation in results.items():
            figures = by_operation[operation]
            for name in names:
                if name not in figures:
                    continue
                line = f"  {size:>8} B  {name:<20} {statistics.median(figures[name]):>12.3f}"
                if name not in ("scan", "copy"):
                    line += f" {ratio(figures[name], figures[BARE.name]):>12.2f}"
                    line += f" {ratio(figures[name], figures[PGCRYPTO.name]):>14.3f}"
                yield line
