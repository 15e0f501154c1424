"""Parameters of every type by asyncpg. It declares no type and asks the server: without a cast a parameter has the column's.
It sends the binary format, unless a codec says otherwise."""

import asyncio
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from uuid import UUID

import asyncpg

PLAIN = {
    "int": 7, "str": "seven", "date": date(1815, 12, 10), "bytes": b"seven", "list": ["seven"], "dict": {"a": 7}, "NULL": None,
}
CAST = {
    "int2": 7, "int4": 7, "int8": 7, "numeric": Decimal("7.5"), "text": "seven", "varchar": "seven", "varchar(9)": "seven",
    "char(9)": "seven", "name": "seven", '"char"': b"s", "bool": True, "date": date(1815, 12, 10),
    "timestamptz": datetime(2026, 1, 2, 3, 4, tzinfo=timezone.utc), "timestamp": datetime(2026, 1, 2, 3, 4), "time": time(3, 4),
    "interval": timedelta(hours=7), "uuid": UUID(int=7), "json": '{"a": 7}', "jsonb": '{"a": 7}', "bytea": b"seven", "float4": 7.5,
    "float8": 7.5, "int4[]": [7, 8], "text[]": ["seven"], "mood": "calm", "oid": 7, "xml": "<a/>",
}
AS_TEXT = {
    "int2": "7", "int4": "7", "int8": "7", "numeric": "7.5", "text": "seven", "varchar": "seven", "bpchar": "seven", "bool": "true",
    "date": "1815-12-10", "timestamptz": "2026-01-02 03:04+00", "uuid": str(UUID(int=7)), "json": '{"a": 7}', "jsonb": '{"a": 7}',
    "bytea": r"\x07", "float4": "7.5", "float8": "7.5",
}


async def send(db, title, value, parameter):
    try:
        await db.execute(f"INSERT INTO probe VALUES ({parameter})", value)
        result = "stored"
    except asyncpg.PostgresError as error:  # the driver's own are of this class, too, but no server said how severe they are
        result = error.sqlstate if error.severity else "refused by the driver"
    print(f"asyncpg {title}: {result}")


async def main():
    db = await asyncpg.connect()
    for title, value in PLAIN.items():
        await send(db, title, value, "$1")
    for title, value in CAST.items():
        await send(db, f"::{title} (binary)", value, f"$1::{title}")
    for title, value in AS_TEXT.items():
        await db.set_type_codec(title, encoder=str, decoder=str, schema="pg_catalog", format="text")
        await send(db, f"::{title} (text)", value, f"$1::{title}")
    await db.close()


asyncio.run(main())
