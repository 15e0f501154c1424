#!/usr/bin/env python3
"""Works out every vector in this folder again, from the formulas in README.md, with OpenSSL.

Needs Python's `cryptography`. Says what differs and exits non-zero; never writes a file.
With --print it prints the files as they should be.
"""

import base64
import datetime
import decimal
import hashlib
import hmac
import json
import pathlib
import re
import sys
import unicodedata
import uuid

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

HERE = pathlib.Path(__file__).parent
FOLDING_TABLES = HERE / "../../crates/envelope/src/folding/unicode_17.rs"
FORMS = ("text", "lower-17.0", "digits-17.0", "integer", "numeric", "date", "timestamptz", "uuid", "boolean", "jsonb")
LOOSE = 0x80


def hkdf(key, info, length=32):
    return HKDF(SHA256(), length, b"pg_fieldcrypt/v1", info).derive(key)


def aes(key, block):
    encryptor = Cipher(algorithms.AES(key), modes.ECB()).encryptor()
    return encryptor.update(block) + encryptor.finalize()


def xaes_message_key(key, nonce):
    first = int.from_bytes(aes(key, bytes(16)), "big")
    k1 = (first << 1) ^ (0x87 | 1 << 128 if first >> 127 else 0)
    derived = b""
    for counter in 1, 2:
        block = bytes([0, counter]) + b"X\0" + nonce[:12]
        derived += aes(key, (int.from_bytes(block, "big") ^ k1).to_bytes(16, "big"))
    return AESGCM(derived)


def xaes_256_gcm(key, nonce, plaintext, aad):
    return xaes_message_key(key, nonce).encrypt(nonce[12:], plaintext, aad)


def canonical(parts):
    return len(parts).to_bytes(2, "big") + b"".join(len(p).to_bytes(4, "big") + p for p in parts)


def field(vector):
    key_id = int(vector["key_id"]).to_bytes(8, "big")
    nonce = bytes.fromhex(vector["nonce"])
    suite_key = hkdf(bytes.fromhex(vector["dek"]), b"suite\x01" + key_id)
    header = b"\xf9\x01" + key_id
    sealed = xaes_256_gcm(
        suite_key,
        nonce[:12] + bytes(8) + nonce[12:],
        bytes.fromhex(vector["plaintext"]),
        header + canonical([part.encode() for part in vector["context"]]),
    )
    value = header + nonce + sealed
    text = "fc1:" + base64.urlsafe_b64encode(value).decode().rstrip("=")
    return {"suite_key": suite_key.hex(), "value": value.hex(), "text": text}


def bound_place(vector):
    if "stamp" in vector:
        stamp = vector["stamp"]
        sizes = (stamp["database"], 4), (stamp["process"], 4), (int(stamp["sealed_at"]), 8)
        return b"".join(number.to_bytes(size, "big", signed=number < 0) for number, size in sizes)
    salt = bytes.fromhex(vector["salt"])
    return salt + hashlib.sha256(salt + vector["context"].encode()).digest()[:12]


def bound_field(vector):
    key_id, nonce = int(vector["key_id"]).to_bytes(8, "big"), bytes.fromhex(vector["nonce"])
    plaintext = bytes.fromhex(vector["plaintext"])
    form = FORMS.index(vector["form"]) + 1
    suite = bytes([3 if "search" in vector else 2])
    suite_key = hkdf(bytes.fromhex(vector["dek"]), b"suite" + suite + key_id)
    place = bound_place(vector)
    header = b"\xf9" + suite + key_id + nonce + bytes([form | (LOOSE if "stamp" in vector else 0)]) + place
    expected = {"place": place.hex(), "suite_key": suite_key.hex()}
    if "search" in vector:
        search = vector["search"]
        search_key_id = int(search["key_id"]).to_bytes(8, "big")
        domain_id = hashlib.sha256(search["domain"].encode() + bytes([form])).digest()[:8]
        tag_key = hkdf(bytes.fromhex(search["dek"]), b"search" + search_key_id + domain_id)
        tag = hmac.digest(tag_key, bytes([form]) + folded(vector["form"], plaintext), "sha256")[:16]
        expected |= {"domain_id": domain_id.hex(), "tag_key": tag_key.hex(), "search_tag": tag.hex()}
        header += search_key_id + domain_id + tag
    value = header + xaes_256_gcm(suite_key, nonce[:12] + bytes(8) + nonce[12:], plaintext, header)
    text = "fc1:" + base64.urlsafe_b64encode(value).decode().rstrip("=")
    if "value" in vector and open_bound(bytes.fromhex(vector["dek"]), vector["text"]) != (vector["form"], plaintext):
        expected["plaintext"] = "what the value opens to"
    return expected | {"value": value.hex(), "text": text}


def open_bound(dek, text):
    """What a bound value holds, by nothing but its own text and the data key: form and plaintext."""
    encoded = text.removeprefix("fc1:")
    value = base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4))
    key_id, nonce = value[2:10], value[10:26]
    start = {2: 43, 3: 75}[value[1]]
    message_key = xaes_message_key(hkdf(dek, b"suite" + value[1:2] + key_id), nonce)
    plaintext = message_key.decrypt(bytes(8) + nonce[12:], value[start:], value[:start])
    return FORMS[(value[26] & ~LOOSE) - 1], plaintext


def plaintext_form(vector):
    form, value = vector["form"], vector["value"]
    if form in ("integer", "timestamptz"):
        plaintext = int(value).to_bytes(8, "big", signed=True)
    elif form == "date":
        plaintext = int(value).to_bytes(4, "big", signed=True)
    elif form == "uuid":
        plaintext = uuid.UUID(value).bytes
    elif form == "boolean":
        plaintext = b"\x01" if value == "true" else b"\x00"
    else:
        plaintext = value.encode()
    fold = folded(form, plaintext)
    return {"plaintext": plaintext.hex(), "folded": None if fold is None else fold.hex()}


def folded(form, plaintext):
    """What of a plaintext is compared; None of forms that are not searchable."""
    if form in ("timestamptz", "boolean", "jsonb"):
        return None
    if form == "lower-17.0":
        return "".join(map(lower_case, plaintext.decode())).encode()
    if form == "digits-17.0":
        return "".join(map(digit, plaintext.decode())).encode() or plaintext
    if form == "numeric" and b"." in plaintext:
        return plaintext.rstrip(b"0").rstrip(b".")
    return plaintext


def lower_case(character):
    return {"\u0130": "i\u0307", "\u03c2": "\u03c3"}.get(character) or LOWER.get(character, character)


def digit(character):
    before = [zero for zero in ZEROS if zero <= character]
    value = ord(character) - ord(before[-1]) if before else 10
    return str(value) if value < 10 else ""


def folding_tables():
    """The frozen tables, read from the core's source."""
    zeros, lower = FOLDING_TABLES.read_text().split("pub static LOWER")
    characters = lambda text: [
        chr(int(found[1], 16)) if found[1] else found[2] for found in re.finditer(r"'(?:\\u\{(\w+)\}|(.))'", text)
    ]
    pairs = characters(lower)
    return dict(zip(pairs[::2], pairs[1::2])), characters(zeros)


LOWER, ZEROS = folding_tables()


def wrong_in_the_tables():
    """Characters that Python's own data, of an older Unicode version, has otherwise."""
    for character in map(chr, range(0x110000)):
        if unicodedata.category(character) in ("Cn", "Cs") or character in "\u0130\u03c2":
            continue
        decimal_digit = unicodedata.decimal(character, None)
        if digit(character) != ("" if decimal_digit is None else str(decimal_digit)):
            yield character
        elif lower_case(character) != character.lower():
            yield character


def master_key(vector):
    key = bytes.fromhex(vector["mek"])
    return {
        "fingerprint": hkdf(key, b"mek-fingerprint", 16).hex(),
        "wrap_key": hkdf(key, b"wrap").hex(),
        "export_key": hkdf(key, b"export").hex(),
    }


def wrapped_key(vector):
    mek, dek = bytes.fromhex(vector["mek"]), bytes.fromhex(vector["dek"])
    key_id = int(vector["key_id"]).to_bytes(8, "big")
    nonce = bytes.fromhex(vector["nonce"])
    check = hkdf(dek, b"dek-check" + key_id, 16)
    aad = canonical([
        b"pg_fieldcrypt/v1 wrapped key",
        vector["tenant"].encode(),
        key_id,
        vector["version"].to_bytes(4, "big"),
        vector["purpose"].encode(),
        vector["algorithm"].encode(),
        hkdf(mek, b"mek-fingerprint", 16),
        check,
    ])
    wrapped = b"\x01" + nonce + xaes_256_gcm(hkdf(mek, b"wrap"), nonce, dek, aad)
    return {"dek_check": check.hex(), "wrapped": wrapped.hex()}


def export_message(document):
    """What the authentication codes of an export of the key table are over."""
    text = lambda value: (value or "").encode()
    number = lambda value, length: int(value).to_bytes(length, "big")
    message = canonical([
        b"pg_fieldcrypt/v1 key export",
        number(document["version"], 8),
        text(document["created_at"]),
        number(document["states_confirmed"], 1),
        number(document["database"]["system_identifier"], 8),
        text(document["database"]["name"]),
        number(len(document["master_keys"]), 8),
        number(len(document["keys"]), 8),
    ])
    for one in document["master_keys"]:
        message += canonical([
            bytes.fromhex(one["fingerprint"]),
            number(one["is_current"], 1),
            text(one["first_used_at"]),
        ])
    for key in document["keys"]:
        message += canonical([
            number(key["key_id"], 8),
            text(key["tenant"]),
            text(key["purpose"]),
            number(key["version"], 4),
            text(key["state"]),
            text(key["algorithm"]),
            bytes.fromhex(key["wrapped_key"] or ""),
            bytes.fromhex(key["master_key_fingerprint"]),
            bytes.fromhex(key["key_check"]),
            text(key["created_at"]),
            text(key["deactivated_at"]),
            text(key["destroyed_at"]),
            text(key["suspended_from"]),
            text(key["destroy_scheduled_at"]),
            text(key["destroy_after"]),
        ])
    return message


def key_export(vector):
    message = export_message(vector["document"])
    codes = []
    for mek in map(bytes.fromhex, vector["meks"]):
        code = hmac.digest(hkdf(mek, b"export"), message, "sha256")
        codes.append({"master_key": hkdf(mek, b"mek-fingerprint", 16).hex(), "hmac_sha256": code.hex()})
    codes.sort(key=lambda code: code["master_key"])
    return {"message": message.hex(), "document": {**vector["document"], "authentication": codes}}


def calendar_day(days):
    """A day, counted from 2000-01-01, and the era: 400 years, which all have as many days, are taken off or added."""
    eras, rest = divmod(days, 146097)
    day = datetime.date(2000, 1, 1) + datetime.timedelta(days=rest)
    year = day.year + 400 * eras
    text = f"{year if year > 0 else 1 - year:04d}-{day.month:02d}-{day.day:02d}"
    return text, "" if year > 0 else " BC"


def context_part(part):
    kind, value = part["type"], part["value"]
    if kind == "text":
        return value.replace("%", "%25").replace("/", "%2F")
    if kind == "integer":
        return str(int(value))
    if kind == "numeric":
        number = decimal.Decimal(value)
        if not number.is_finite():
            return value
        with decimal.localcontext() as exact:
            exact.prec = 1000
            number = number.normalize()
        return "0" if number == 0 else f"{number:f}"
    if kind in ("boolean", "uuid"):
        return value
    number, bits = int(value), 32 if kind == "date" else 64
    if number in (2 ** (bits - 1) - 1, -(2 ** (bits - 1))):
        return "infinity" if number > 0 else "-infinity"
    if kind == "date":
        day, era = calendar_day(number)
        return day + era
    days, rest = divmod(number, 86_400_000_000)
    day, era = calendar_day(days)
    seconds, fraction = divmod(rest, 1_000_000)
    clock = f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}.{fraction:06d}"
    return f"{day}T{clock}{'Z' if kind == 'timestamptz' else ''}{era}"


def audit_row(vector):
    row = vector["row"]

    def number(value, width=8):
        return int(value).to_bytes(width, "big", signed=int(value) < 0)

    def text(value):
        return len(value.encode()).to_bytes(4, "big") + value.encode()

    def several(one):
        return lambda values: len(values).to_bytes(4, "big") + b"".join(map(one, values))

    def optional(name, encode):
        return b"\x01" + encode(row[name]) if name in row else b"\x00"

    epoch = datetime.datetime(1970, 1, 1, tzinfo=datetime.timezone.utc)
    at = datetime.datetime.fromisoformat(row["at"].replace("Z", "+00:00")) - epoch
    is_new = "subject" in row or "contexts" in row
    encoded = (
        (b"\x02" if is_new else b"\x01")
        + number(row["id"])
        + number(at // datetime.timedelta(microseconds=1))
        + text(row["event"])
        + text(row["actor"])
        + text(row["role"])
        + optional("client_address", text)
        + optional("application", text)
        + number(row["backend_pid"], 4)
        + optional("transaction_id", number)
        + optional("tenant", text)
        + optional("key_id", number)
        + b"".join(optional(name, text) for name in ("reason", "table_name", "partition_name", "row_key", "old_row_key"))
        + optional("changed_columns", several(text))
        + optional("error_code", text)
        + optional("value_count", number)
        + optional("key_ids", several(number))
    )
    if is_new:
        encoded += optional("subject", text) + optional("contexts", several(text))
    expected = {"encoded": encoded.hex()}
    entry = b"\x00" + encoded
    if "mac_key_id" in row:
        key_id = number(row["mac_key_id"])
        mac = hmac.digest(hkdf(bytes.fromhex(vector["dek"]), b"audit" + key_id), encoded, "sha256")
        expected["mac"] = mac.hex()
        entry = b"\x01" + key_id + mac + encoded
    expected["leaf_hash"] = hashlib.sha256(b"\x00" + entry).hexdigest()
    return expected


def context(vector):
    return {"context": "/".join(map(context_part, vector["parts"]))}


def main():
    differing = 0
    for character in wrong_in_the_tables():
        differing += 1
        print(f"folding tables: {character!r} is otherwise in Unicode {unicodedata.unidata_version}", file=sys.stderr)
    for name, formula in (
        ("master-keys.json", master_key),
        ("wrapped-keys.json", wrapped_key),
        ("fields.json", field),
        ("key-exports.json", key_export),
        ("contexts.json", context),
        ("plaintexts.json", plaintext_form),
        ("bound-fields.json", bound_field),
        ("audit-rows.json", audit_row),
    ):
        vectors = json.loads((HERE / name).read_text())
        for vector in vectors:
            expected = formula(vector)
            if any(vector.get(key) != value for key, value in expected.items()):
                differing += 1
                print(f"{name}: {vector['name']}: should be {expected}", file=sys.stderr)
            vector.update(expected)
        if "--print" in sys.argv:
            print(json.dumps(vectors, indent=2, ensure_ascii=True))
        else:
            print(f"{name}: {len(vectors)} vectors")
    sys.exit(1 if differing else 0)


if __name__ == "__main__":
    main()
