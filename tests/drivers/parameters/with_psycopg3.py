"""Parameters of every type by psycopg 3, which declares the type of most: in the text format (%t) and in the binary one (%b)."""

from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum
from uuid import UUID

import psycopg
from psycopg.types.enum import EnumInfo, register_enum
from psycopg.types.json import Json, Jsonb
from psycopg.types.numeric import Float4, Int2, Int4, Int8


class Mood(Enum):
    calm = 1
    cross = 2


NATIVE = {
    "int2": Int2(7), "int4": Int4(7), "int8": Int8(7), "int": 7, "numeric": Decimal("7.5"), "str": "seven", "bool": True,
    "date": date(1815, 12, 10), "timestamptz": datetime(2026, 1, 2, 3, 4, tzinfo=timezone.utc),
    "timestamp": datetime(2026, 1, 2, 3, 4), "time": time(3, 4), "interval": timedelta(hours=7), "uuid": UUID(int=7),
    "json": Json({"a": 7}), "jsonb": Jsonb({"a": 7}), "bytea": b"seven", "float4": Float4(7.5), "float8": 7.5,
    "int[]": [7, 8], "text[]": ["seven"], "enum": Mood.calm, "tuple": (7, "seven"), "NULL": None,
}
# What no class of Python stands for.
CAST = {"text": "seven", "varchar": "seven", "varchar(9)": "seven", "char(9)": "seven", "name": "seven", '"char"': "s", "oid": 7, "xml": "<a/>"}


def send(db, title, value, parameter):
    for name, letter in (("text", "t"), ("binary", "b")):
        try:
            db.execute(f"INSERT INTO probe VALUES ({parameter.replace('%', '%' + letter)})", (value,))
            result = "stored"
        except psycopg.Error as error:
            result = error.sqlstate or "refused by the driver"
        print(f"psycopg3 {title} ({name}): {result}")


with psycopg.connect(autocommit=True) as connection:
    register_enum(EnumInfo.fetch(connection, "mood"), connection, Mood)
    for title, value in NATIVE.items():
        send(connection, title, value, "%")
    for title, value in CAST.items():
        send(connection, title, value, f"%::{title}")
