-- What schema.sql makes, without the extension: the same names, the same types where an application looks.
CREATE TABLE patients (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name text NOT NULL,
    ssn text,
    born date,
    notes jsonb,
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE VIEW decrypted_patients AS SELECT * FROM patients;

-- No ORM writes OVERRIDING SYSTEM VALUE, so their upserts have a table whose key they make themselves.
CREATE TABLE cards (code text PRIMARY KEY, name text NOT NULL, ssn text, born date, notes jsonb);
CREATE VIEW decrypted_cards AS SELECT * FROM cards;

GRANT SELECT, INSERT, UPDATE, DELETE ON patients, decrypted_patients, cards, decrypted_cards TO clinic;
-- EclipseLink asks for lastval(). To read a sequence does not suffice for nextval(), which nobody should need for an identity.
GRANT SELECT ON SEQUENCE patients_id_seq TO clinic;
