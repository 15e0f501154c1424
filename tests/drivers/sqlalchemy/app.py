"""SQLAlchemy's ORM over psycopg 3: the model is an ordinary one, its table is the view."""

import os
from datetime import date, datetime, timedelta, timezone

from sqlalchemy import URL, FetchedValue, Identity, create_engine, delete, func, insert, select
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column


class Base(DeclarativeBase):
    type_annotation_map = {dict: JSONB}


class Person:
    name: Mapped[str]
    ssn: Mapped[str | None]
    born: Mapped[date | None]
    notes: Mapped[dict | None]


class Patient(Person, Base):
    __tablename__ = "decrypted_patients"
    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    created_at: Mapped[datetime] = mapped_column(server_default=FetchedValue())


class Card(Person, Base):  # to read
    __tablename__ = "decrypted_cards"
    code: Mapped[str] = mapped_column(primary_key=True)


class CardTable(Person, Base):  # to upsert: ON CONFLICT wants a table
    __tablename__ = "cards"
    code: Mapped[str] = mapped_column(primary_key=True)


def short(p):
    return f"{p.name} {p.ssn or 'none'} {p.born:%Y-%m-%d}"


def medical(p):
    return f"visit {p.notes['visits'] + 1}, allergies {' and '.join(p.notes['allergies'])}"


def main(db):
    ada = Patient(name="Ada", ssn="078-05-1120", born=date(1815, 12, 10), notes={"visits": 3, "allergies": ["nuts", "Pfefferminzöl"]})
    grace = Patient(name="Grace", ssn="219-09-9999", born=date(1906, 12, 9), notes={"visits": 0, "allergies": []})
    edsger = Patient(name="Edsger", ssn="457-55-5462", born=date(1930, 5, 11), notes={"visits": 1, "allergies": []})
    db.add_all([ada, grace, edsger])
    db.commit()
    print("inserted:", ada.id, grace.id, edsger.id)
    key = ada.id
    db.expunge_all()
    ada = db.get(Patient, key)
    today = datetime.now(timezone.utc) - ada.created_at < timedelta(days=1)
    print(f"read: {short(ada)}, {medical(ada)}, created {'today' if today else 'at ' + str(ada.created_at)}")

    # A commit expires the object, so what is printed is read again.
    for title, field, value in [
        ("one field", "ssn", "078-05-1121"), ("another column", "name", "Ada Lovelace"), ("NULL", "ssn", None)
    ]:
        setattr(ada, field, value)
        db.commit()
        print(f"{title}: {short(ada)}")
    count = select(func.count()).select_from(Patient)
    deleted = db.execute(delete(Patient).where(Patient.name == "Grace")).rowcount
    print(f"deleted: {deleted}, left: {db.scalar(count)}")

    db.execute(insert(Patient), [
        {"name": f"Patient {n:02}", "ssn": f"100-00-{n:04}", "born": date(1950 + n, 1, 1), "notes": {"visits": n, "allergies": []}}
        for n in range(1, 51)
    ])
    db.commit()
    print("bulk:", db.scalar(count))
    print("by name:", ", ".join(db.scalars(select(Patient.name).order_by(Patient.name).limit(3))))
    ada.ssn = "000-00-0000"
    db.add(Patient(name="Grace"))
    db.flush()
    db.rollback()
    print(f"rolled back: {db.scalar(count)}, {short(ada)}")

    page = db.scalars(select(Patient).order_by(Patient.name).limit(10).offset(20)).all()
    print(f"page: {page[0].name} {page[0].ssn} to {page[-1].name} {page[-1].ssn}")
    found = db.scalars(select(Patient).filter_by(ssn="100-00-0007")).one().name
    since = db.scalar(count.where(Patient.born >= date(1990, 1, 1)))
    print(f"by an encrypted field: {found}, born from 1990 on: {since}")

    for title, ssn, visits in [("upsert", "300-00-0001", 0), ("upsert again", "300-00-0002", 1)]:
        row = upsert(CardTable).values(
            code="b", name="Barbara", ssn=ssn, born=date(1928, 11, 7), notes={"visits": visits, "allergies": ["dust"]}
        )
        changed = {field: row.excluded[field] for field in ("name", "ssn", "born", "notes")}
        db.execute(row.on_conflict_do_update(index_elements=["code"], set_=changed))
        db.commit()
        card = db.get(Card, "b")
        print(f"{title}: {short(card)}, {medical(card)}")


url = URL.create("postgresql+psycopg", os.environ["PGUSER"], os.environ["PGPASSWORD"], os.environ["PGHOST"],
                 int(os.environ["PGPORT"]), os.environ["PGDATABASE"])
with Session(create_engine(url)) as session:
    main(session)
