"""asyncpg, plain SQL. The connection comes from PGHOST and its like."""

import asyncio
import json
from datetime import date, datetime, timedelta, timezone

import asyncpg

PEOPLE = [
    ("Ada", "078-05-1120", date(1815, 12, 10), {"visits": 3, "allergies": ["nuts", "Pfefferminzöl"]}),
    ("Grace", "219-09-9999", date(1906, 12, 9), {"visits": 0, "allergies": []}),
    ("Edsger", "457-55-5462", date(1930, 5, 11), {"visits": 1, "allergies": []}),
]
BULK = [(f"Patient {n:02}", f"100-00-{n:04}", date(1950 + n, 1, 1), {"visits": n, "allergies": []}) for n in range(1, 51)]

INSERT = "INSERT INTO decrypted_patients (name, ssn, born, notes) VALUES ($1, $2, $3, $4)"
# Without the casts asyncpg takes a parameter for what the column is, and wants a str for everything.
UPSERT = """
    INSERT INTO patients (id, name, ssn, born, notes) OVERRIDING SYSTEM VALUE VALUES ($1, $2, $3::text, $4::date, $5::jsonb)
    ON CONFLICT (id) DO UPDATE SET name = excluded.name, ssn = excluded.ssn, born = excluded.born, notes = excluded.notes"""


async def main():
    db = await asyncpg.connect()
    await db.set_type_codec("jsonb", encoder=json.dumps, decoder=json.loads, schema="pg_catalog")

    async def patient(key):
        return await db.fetchrow("SELECT * FROM decrypted_patients WHERE id = $1", key)

    async def count():
        return await db.fetchval("SELECT count(*) FROM decrypted_patients")

    async def short(key):
        p = await patient(key)
        return f"{p['name']} {p['ssn'] or 'none'} {p['born']:%Y-%m-%d}"

    async def medical(key):
        notes = (await patient(key))["notes"]
        return f"visit {notes['visits'] + 1}, allergies {' and '.join(notes['allergies'])}"

    ada, grace, edsger = [await db.fetchval(INSERT + " RETURNING id", *person) for person in PEOPLE]
    print("inserted:", ada, grace, edsger)
    created = (await patient(ada))["created_at"]
    today = datetime.now(timezone.utc) - created < timedelta(days=1)
    print(f"read: {await short(ada)}, {await medical(ada)}, created {'today' if today else 'at ' + str(created)}")

    await db.execute("UPDATE decrypted_patients SET ssn = $1 WHERE id = $2", "078-05-1121", ada)
    print("one field:", await short(ada))
    await db.execute("UPDATE decrypted_patients SET name = $1 WHERE id = $2", "Ada Lovelace", ada)
    print("another column:", await short(ada))
    await db.execute("UPDATE decrypted_patients SET ssn = $1 WHERE id = $2", None, ada)
    print("NULL:", await short(ada))
    deleted = await db.execute("DELETE FROM decrypted_patients WHERE id = $1", grace)
    print(f"deleted: {deleted.removeprefix('DELETE ')}, left: {await count()}")

    await db.executemany(INSERT, BULK)
    print("bulk:", await count())
    names = await db.fetch("SELECT name FROM decrypted_patients ORDER BY name LIMIT 3")
    print("by name:", ", ".join(p["name"] for p in names))
    transaction = db.transaction()
    await transaction.start()
    await db.execute("UPDATE decrypted_patients SET ssn = $1 WHERE id = $2", "000-00-0000", ada)
    await db.execute(INSERT, *PEOPLE[1])
    await transaction.rollback()
    print(f"rolled back: {await count()}, {await short(ada)}")

    page = await db.fetch("SELECT * FROM decrypted_patients ORDER BY name LIMIT $1 OFFSET $2", 10, 20)
    print(f"page: {page[0]['name']} {page[0]['ssn']} to {page[-1]['name']} {page[-1]['ssn']}")
    found = await db.fetchval("SELECT name FROM decrypted_patients WHERE ssn = $1", "100-00-0007")
    since = await db.fetchval("SELECT count(*) FROM decrypted_patients WHERE born >= $1", date(1990, 1, 1))
    print(f"by an encrypted field: {found}, born from 1990 on: {since}")

    for title, ssn, visits in [("upsert", "300-00-0001", 0), ("upsert again", "300-00-0002", 1)]:
        await db.execute(UPSERT, 1000, "Barbara", ssn, date(1928, 11, 7), {"visits": visits, "allergies": ["dust"]})
        print(f"{title}: {await short(1000)}, {await medical(1000)}")
    await db.close()


asyncio.run(main())
