"""psycopg2, plain SQL. The connection comes from PGHOST and its like."""

from datetime import date, datetime, timedelta, timezone

import psycopg2
from psycopg2.extras import Json, NamedTupleCursor, execute_values

PEOPLE = [
    ("Ada", "078-05-1120", date(1815, 12, 10), {"visits": 3, "allergies": ["nuts", "Pfefferminzöl"]}),
    ("Grace", "219-09-9999", date(1906, 12, 9), {"visits": 0, "allergies": []}),
    ("Edsger", "457-55-5462", date(1930, 5, 11), {"visits": 1, "allergies": []}),
]
BULK = [(f"Patient {n:02}", f"100-00-{n:04}", date(1950 + n, 1, 1), {"visits": n, "allergies": []}) for n in range(1, 51)]

INSERT = "INSERT INTO decrypted_patients (name, ssn, born, notes) VALUES (%s, %s, %s, %s)"
UPSERT = """
    INSERT INTO patients (id, name, ssn, born, notes) OVERRIDING SYSTEM VALUE VALUES (%s, %s, %s, %s, %s)
    ON CONFLICT (id) DO UPDATE SET name = excluded.name, ssn = excluded.ssn, born = excluded.born, notes = excluded.notes"""


def values(name, ssn, born, notes):
    return name, ssn, born, Json(notes)


def main(db, cursor):
    def one(sql, *parameters):
        cursor.execute(sql, parameters)
        return cursor.fetchone()

    def patient(key):
        return one("SELECT * FROM decrypted_patients WHERE id = %s", key)

    def short(p):
        return f"{p.name} {p.ssn or 'none'} {p.born:%Y-%m-%d}"

    def medical(p):
        return f"visit {p.notes['visits'] + 1}, allergies {' and '.join(p.notes['allergies'])}"

    ada, grace, edsger = [one(INSERT + " RETURNING id", *values(*person)).id for person in PEOPLE]
    print("inserted:", ada, grace, edsger)
    p = patient(ada)
    today = datetime.now(timezone.utc) - p.created_at < timedelta(days=1)
    print(f"read: {short(p)}, {medical(p)}, created {'today' if today else 'at ' + str(p.created_at)}")

    cursor.execute("UPDATE decrypted_patients SET ssn = %s WHERE id = %s", ("078-05-1121", ada))
    print("one field:", short(patient(ada)))
    cursor.execute("UPDATE decrypted_patients SET name = %s WHERE id = %s", ("Ada Lovelace", ada))
    print("another column:", short(patient(ada)))
    cursor.execute("UPDATE decrypted_patients SET ssn = %s WHERE id = %s", (None, ada))
    print("NULL:", short(patient(ada)))
    cursor.execute("DELETE FROM decrypted_patients WHERE id = %s", (grace,))
    deleted = cursor.rowcount
    count = "SELECT count(*) AS n FROM decrypted_patients"
    print(f"deleted: {deleted}, left: {one(count).n}")

    execute_values(
        cursor, "INSERT INTO decrypted_patients (name, ssn, born, notes) VALUES %s", [values(*person) for person in BULK]
    )
    print("bulk:", one(count).n)
    cursor.execute("SELECT name FROM decrypted_patients ORDER BY name LIMIT 3")
    print("by name:", ", ".join(p.name for p in cursor.fetchall()))
    db.commit()
    cursor.execute("UPDATE decrypted_patients SET ssn = %s WHERE id = %s", ("000-00-0000", ada))
    cursor.execute(INSERT, values(*PEOPLE[1]))
    db.rollback()
    print(f"rolled back: {one(count).n}, {short(patient(ada))}")

    cursor.execute("SELECT * FROM decrypted_patients ORDER BY name LIMIT %s OFFSET %s", (10, 20))
    page = cursor.fetchall()
    print(f"page: {page[0].name} {page[0].ssn} to {page[-1].name} {page[-1].ssn}")
    found = one("SELECT name FROM decrypted_patients WHERE ssn = %s", "100-00-0007").name
    since = one("SELECT count(*) AS n FROM decrypted_patients WHERE born >= %s", date(1990, 1, 1)).n
    print(f"by an encrypted field: {found}, born from 1990 on: {since}")

    for title, ssn, visits in [("upsert", "300-00-0001", 0), ("upsert again", "300-00-0002", 1)]:
        cursor.execute(UPSERT, (1000, *values("Barbara", ssn, date(1928, 11, 7), {"visits": visits, "allergies": ["dust"]})))
        print(f"{title}: {short(patient(1000))}, {medical(patient(1000))}")


with psycopg2.connect("") as connection, connection.cursor(cursor_factory=NamedTupleCursor) as c:
    main(connection, c)
