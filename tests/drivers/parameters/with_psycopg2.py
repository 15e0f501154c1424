"""Parameters of every type by psycopg2, which writes all of them into the statement as literals."""

from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from uuid import UUID

import psycopg2
from psycopg2.extras import Json, register_uuid

NATIVE = {
    "int": 7, "a large int": 7_000_000_000, "numeric": Decimal("7.5"), "str": "seven", "bool": True, "date": date(1815, 12, 10),
    "timestamptz": datetime(2026, 1, 2, 3, 4, tzinfo=timezone.utc), "timestamp": datetime(2026, 1, 2, 3, 4), "time": time(3, 4),
    "interval": timedelta(hours=7), "uuid": UUID(int=7), "json": Json({"a": 7}), "bytea": b"seven", "float": 7.5, "int[]": [7, 8],
    "text[]": ["seven"], "tuple": (7, "seven"), "NULL": None,
}
# What no class of Python stands for.
CAST = {
    "int2": 7, "int8": 7, "text": "seven", "varchar": "seven", "varchar(9)": "seven", "char(9)": "seven", "name": "seven", '"char"': "s",
    "json": Json({"a": 7}), "jsonb": Json({"a": 7}), "float4": 7.5, "float8": 7.5, "mood": "calm", "oid": 7, "xml": "<a/>",
}


def send(cursor, title, value, parameter):
    try:
        cursor.execute(f"INSERT INTO probe VALUES ({parameter})", (value,))
        result = "stored"
    except psycopg2.Error as error:
        result = error.pgcode or "refused by the driver"
    print(f"psycopg2 {title}: {result}")


register_uuid()
connection = psycopg2.connect("")
connection.autocommit = True
for title, value in NATIVE.items():
    send(connection.cursor(), title, value, "%s")
for title, value in CAST.items():
    send(connection.cursor(), f"::{title}", value, f"%s::{title}")
