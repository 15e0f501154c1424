"""Django: ordinary models that it does not manage, their table is the view. All in one file, as a small service may be."""

import os
from datetime import date, timedelta

import django
from django.conf import settings
from django.db import models, transaction
from django.db.models.functions import Now
from django.utils import timezone

settings.configure(
    DATABASES={
        "default": {
            "ENGINE": "django.db.backends.postgresql",
            **{name: os.environ["PG" + name] for name in ("HOST", "PORT", "USER", "PASSWORD")},
            "NAME": os.environ["PGDATABASE"],
        }
    },
    DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
    USE_TZ=True,
)
django.setup()


class Person(models.Model):
    name = models.TextField()
    ssn = models.TextField(null=True)
    born = models.DateField(null=True)
    notes = models.JSONField(null=True)

    class Meta:
        abstract = True
        app_label = "clinic"
        managed = False

    def __str__(self):
        return f"{self.name} {self.ssn or 'none'} {self.born:%Y-%m-%d}"

    def medical(self):
        return f"visit {self.notes['visits'] + 1}, allergies {' and '.join(self.notes['allergies'])}"


class Patient(Person):
    created_at = models.DateTimeField(db_default=Now())

    class Meta(Person.Meta):
        db_table = "decrypted_patients"


class Card(Person):  # to read
    code = models.TextField(primary_key=True)

    class Meta(Person.Meta):
        db_table = "decrypted_cards"


class CardTable(Person):  # to upsert: ON CONFLICT wants a table
    code = models.TextField(primary_key=True)

    class Meta(Person.Meta):
        db_table = "cards"


patients = Patient.objects
notes = {"visits": 3, "allergies": ["nuts", "Pfefferminzöl"]}
ada = patients.create(name="Ada", ssn="078-05-1120", born=date(1815, 12, 10), notes=notes)
grace = patients.create(name="Grace", ssn="219-09-9999", born=date(1906, 12, 9), notes={"visits": 0, "allergies": []})
edsger = patients.create(name="Edsger", ssn="457-55-5462", born=date(1930, 5, 11), notes={"visits": 1, "allergies": []})
print("inserted:", ada.id, grace.id, edsger.id)
ada = patients.get(id=ada.id)
today = timezone.now() - ada.created_at < timedelta(days=1)
print(f"read: {ada}, {ada.medical()}, created {'today' if today else 'at ' + str(ada.created_at)}")

ada.ssn = "078-05-1121"
ada.save(update_fields=["ssn"])
print("one field:", patients.get(id=ada.id))
ada.name = "Ada Lovelace"
ada.save()
print("another column:", patients.get(id=ada.id))
patients.filter(id=ada.id).update(ssn=None)
print("NULL:", patients.get(id=ada.id))
deleted, _ = patients.filter(name="Grace").delete()
print(f"deleted: {deleted}, left: {patients.count()}")

patients.bulk_create(
    Patient(name=f"Patient {n:02}", ssn=f"100-00-{n:04}", born=date(1950 + n, 1, 1), notes={"visits": n, "allergies": []})
    for n in range(1, 51)
)
print("bulk:", patients.count())
print("by name:", ", ".join(p.name for p in patients.order_by("name")[:3]))
with transaction.atomic():
    patients.filter(id=ada.id).update(ssn="000-00-0000")
    patients.create(name="Grace")
    transaction.set_rollback(True)
print(f"rolled back: {patients.count()}, {patients.get(id=ada.id)}")

page = list(patients.order_by("name")[20:30])
print(f"page: {page[0].name} {page[0].ssn} to {page[-1].name} {page[-1].ssn}")
found = patients.get(ssn="100-00-0007").name
print(f"by an encrypted field: {found}, born from 1990 on: {patients.filter(born__gte=date(1990, 1, 1)).count()}")

for title, ssn, visits in [("upsert", "300-00-0001", 0), ("upsert again", "300-00-0002", 1)]:
    card = CardTable(code="b", name="Barbara", ssn=ssn, born=date(1928, 11, 7), notes={"visits": visits, "allergies": ["dust"]})
    CardTable.objects.bulk_create(
        [card], update_conflicts=True, unique_fields=["code"], update_fields=["name", "ssn", "born", "notes"]
    )
    card = Card.objects.get(code="b")
    print(f"{title}: {card}, {card.medical()}")
