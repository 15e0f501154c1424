-- The tables of the example applications, encrypted. The applications connect as clinic, which owns nothing.
CREATE EXTENSION pg_fieldcrypt;
-- The first value of a tenant makes its key, which takes a number of the log: lastval() would be that one.
SELECT fieldcrypt.create_key('default');

CREATE TABLE patients (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name text NOT NULL,
    ssn fieldcrypt.encrypted_text,
    born fieldcrypt.encrypted_text,
    notes fieldcrypt.encrypted_text,
    created_at timestamptz NOT NULL DEFAULT now()
);
SELECT fieldcrypt.protect_column('patients', 'ssn');
SELECT fieldcrypt.protect_column('patients', 'born', plaintext => 'date');
SELECT fieldcrypt.protect_column('patients', 'notes', plaintext => 'jsonb');
SELECT fieldcrypt.create_decrypted_view('patients');

-- No ORM writes OVERRIDING SYSTEM VALUE, so their upserts have a table whose key they make themselves.
CREATE TABLE cards (
    code text PRIMARY KEY,
    name text NOT NULL,
    ssn fieldcrypt.encrypted_text,
    born fieldcrypt.encrypted_text,
    notes fieldcrypt.encrypted_text
);
SELECT fieldcrypt.protect_column('cards', 'ssn');
SELECT fieldcrypt.protect_column('cards', 'born', plaintext => 'date');
SELECT fieldcrypt.protect_column('cards', 'notes', plaintext => 'jsonb');
SELECT fieldcrypt.create_decrypted_view('cards');

GRANT SELECT, INSERT, UPDATE, DELETE ON patients, decrypted_patients, cards, decrypted_cards TO clinic;
-- EclipseLink asks for lastval(). To read a sequence does not suffice for nextval(), which nobody should need for an identity.
GRANT SELECT ON SEQUENCE patients_id_seq TO clinic;
SELECT fieldcrypt.grant_access('clinic', 'encrypt', 'decrypt');
