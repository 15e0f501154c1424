#!/usr/bin/env bash
# The main job, told step by step on a throw-away cluster. Every step is checked: if one does not
# do what the text says, the demo fails.
source "$(dirname "$0")/../../pgrx-config/lib.sh"

cluster=pgrx-config/cluster.sh
key=$work/demo/master.key
ssn=123-45-6789
iban=DE89370400440532013000

main() {
    say "Starting a private cluster, with a master key file of its own"
    $cluster fresh
    new_master_key "$key"
    as_server cp -p "$key" "$key.right"
    as_server tee -a "$work/demo/data/postgresql.conf" >/dev/null <<<"fieldcrypt.master_key_file = '$key'"
    quietly 'SELECT pg_reload_conf()'

    set_up
    encrypt
    thief
    decrypt
    rights
    second_tenant
    existing_table
    rotate
    audit_log
    health
    report
    dump_and_restore
    tampering
    wrong_master_key
    goodbye
}

set_up() {
    heading "A table with an encrypted column"
    note "The setting fieldcrypt.master_key_file names the master key. It lies outside the data directory."
    sql <<'SQL'
CREATE EXTENSION pg_fieldcrypt;
CREATE TABLE patients (id int PRIMARY KEY, name text, ssn fieldcrypt.encrypted);
SELECT fieldcrypt.audit_table('patients');
SQL
}

encrypt() {
    heading "Encrypt"
    note "The context binds a value to its table, column and row: it opens nowhere else."
    sql <<SQL
INSERT INTO patients
SELECT id, name, fieldcrypt.encrypt_field(ssn, fieldcrypt.context('patients.ssn', id))
FROM (VALUES (1, 'Ada', '$ssn'), (2, 'Grace', '987-65-4321'), (3, 'Alan', '555-12-3456')) AS v (id, name, ssn);
SELECT id, name, ssn FROM patients;
SELECT info.* FROM patients, fieldcrypt.ciphertext_info(ssn) AS info WHERE id = 1;
SQL
}

thief() {
    heading "What a thief sees"
    note "In a dump:"
    show "pg_dump --table patients --data-only"
    $cluster exec pg_dump --table patients --data-only | grep '^[0-9]'
    quietly 'CHECKPOINT'
    note "On the disk: how many files hold a name (names are not encrypted here), and how many a number."
    show "grep --recursive --files-with-matches Grace \$PGDATA | wc -l"
    files_with Grace
    show "grep --recursive --files-with-matches $ssn \$PGDATA | wc -l"
    files_with "$ssn"
    (($(files_with Grace) > 0 && $(files_with "$ssn") == 0)) || die "that is not what should lie on the disk"
}

files_with() {
    { as_server grep --recursive --files-with-matches --text --fixed-strings -e "$1" "$work/demo/data" || true; } | wc -l
}

decrypt() {
    heading "Decrypt"
    sql <<'SQL'
SELECT id, name, fieldcrypt.decrypt_field(ssn, fieldcrypt.context('patients.ssn', id)) FROM patients ORDER BY id;
SQL
    note "Ada's value in Grace's row: an error, never a wrong value."
    fails KF002 <<'SQL'
SELECT fieldcrypt.decrypt_field(ssn, fieldcrypt.context('patients.ssn', 2)) FROM patients WHERE id = 1;
SQL
}

rights() {
    heading "A role that encrypts but can't decrypt"
    sql <<'SQL'
CREATE ROLE app LOGIN;
GRANT SELECT, INSERT, UPDATE ON patients TO app;
SELECT fieldcrypt.grant_access('app', 'encrypt');
SQL
    note "Connected as app:"
    user=app sql <<'SQL'
INSERT INTO patients VALUES (4, 'Edsger', fieldcrypt.encrypt_field('321-54-9876', fieldcrypt.context('patients.ssn', 4)));
SQL
    user=app fails 42501 <<'SQL'
SELECT fieldcrypt.decrypt_field(ssn, fieldcrypt.context('patients.ssn', id)) FROM patients;
SQL
}

second_tenant() {
    heading "A second tenant"
    note "Each tenant has keys of its own, made at first use. A transaction that is locked to one neither reads nor writes another's."
    sql <<'SQL'
CREATE TABLE notes (id int PRIMARY KEY, tenant text, note fieldcrypt.encrypted);
BEGIN;
SELECT fieldcrypt.lock_tenant('acme');
INSERT INTO notes VALUES (1, 'acme', fieldcrypt.encrypt_field('our secret', fieldcrypt.context('notes.note', 1)));
COMMIT;
SELECT tenant, version, state FROM fieldcrypt.encryption_keys WHERE purpose = 'field' ORDER BY tenant;
SQL
    fails KF006 <<'SQL'
BEGIN;
SELECT fieldcrypt.lock_tenant('umbrella');
SELECT fieldcrypt.decrypt_field(note, fieldcrypt.context('notes.note', id)) FROM notes;
SQL
}

existing_table() {
    heading "A table that is there already"
    note "It has a column in plaintext. An encrypted one takes its place; VACUUM FULL takes the old rows off the disk."
    sql <<SQL
CREATE TABLE staff (id int PRIMARY KEY, name text, iban text);
INSERT INTO staff VALUES (1, 'Joan', '$iban'), (2, 'Annie', 'GB29NWBK60161331926819');

ALTER TABLE staff ADD COLUMN iban_encrypted fieldcrypt.encrypted;
UPDATE staff SET iban_encrypted = fieldcrypt.encrypt_field(iban, fieldcrypt.context('staff.iban', id));
ALTER TABLE staff DROP COLUMN iban;
ALTER TABLE staff RENAME COLUMN iban_encrypted TO iban;
VACUUM FULL staff;
SELECT id, name, fieldcrypt.decrypt_field(iban, fieldcrypt.context('staff.iban', id)) FROM staff;
SQL
    note "WAL and backups from before hold the plaintext until they are gone."
    local value
    value=$(value "SELECT fieldcrypt.decrypt_field(iban, fieldcrypt.context('staff.iban', id)) FROM staff WHERE id = 1")
    [[ $value == "$iban" ]] || die "the value is not what was taken over"
}

rotate() {
    heading "Rotate the key"
    note "New values take the new key; old values stay readable."
    sql <<'SQL'
CALL fieldcrypt.rotate_keys('default', reason => 'demo');
INSERT INTO patients VALUES (5, 'Barbara', fieldcrypt.encrypt_field('111-22-3333', fieldcrypt.context('patients.ssn', 5)));
SELECT id, fieldcrypt.key_id(ssn), fieldcrypt.decrypt_field(ssn, fieldcrypt.context('patients.ssn', id)) FROM patients ORDER BY id;
SQL
    note "Move the old rows to the new key, online and in batches. Nobody sees a plaintext on the way."
    sql <<'SQL'
SELECT fieldcrypt.set_column_context('patients', 'ssn', expression => $$fieldcrypt.context('patients.ssn', id)$$, enforce => true);
CALL fieldcrypt.reencrypt('patients');
SELECT table_name, state, rows_done, rows_moved, rows_failed FROM fieldcrypt.reencryption_progress;
SELECT count(*) AS patients, count(DISTINCT fieldcrypt.key_id(ssn)) AS keys FROM patients;
SQL
    local keys
    keys=$(value 'SELECT count(DISTINCT fieldcrypt.key_id(ssn)) FROM patients')
    [[ $keys == 1 ]] || die "re-encryption left $keys keys in use"
}

audit_log() {
    heading "Who did what"
    note "What was refused is recorded too, although its transaction was rolled back: KF002, 42501 and KF006, from above."
    note "The first key is the log's own, the second the one that the rows were encrypted with."
    wait_for "SELECT count(*) FROM fieldcrypt.audit_log WHERE event = 'decrypt_failed'" 2
    sql <<'SQL'
SELECT at::time(0), event, actor, key_id, row_key, error_code
FROM fieldcrypt.audit_log WHERE event <> 'master_key_loaded' ORDER BY id;
SQL
}

health() {
    heading "Is everything well?"
    note "What a new server still lacks: a verification every night, copies elsewhere. And \"default\" has values beside a
-- tenant's. The column hint says what to do."
    sql <<'SQL'
SELECT "check", status, detail FROM fieldcrypt.health() WHERE status <> 'ok';
SQL
}

report() {
    heading "A look at the report"
    note "For an auditor, as one page: what there is of keys, who may do what and who did, and whether the record holds."
    show "psql -XAtq -o report.html -c 'SELECT fieldcrypt.compliance_report_html()'"
    value "SELECT fieldcrypt.compliance_report_html()" | as_server tee "$work/demo/report.html" >/dev/null
    note "Open it in a browser: $work/demo/report.html. Some of its figures:"
    sql <<'SQL'
SELECT r #>> '{verification,status}' AS audit_log, r #>> '{health,status}' AS health, r #>> '{keys,totals,tenants}' AS tenants,
       r #>> '{reencryption,totals,active}' AS values_on_active_keys, r #>> '{reencryption,totals,deactivated}' AS on_old_keys,
       r #>> '{use,failed}' AS failed_decrypts
FROM fieldcrypt.compliance_report() AS r;
SQL
    as_server grep --quiet 'Compliance report' "$work/demo/report.html" || die "there is no report"
}

dump_and_restore() {
    heading "Dump and restore"
    note "A dump holds the ciphertext, and the keys wrapped by the master key, which is not in it. With that key it opens elsewhere:"
    local dump=$work/demo/demo.dump restored
    show "pg_dump --format=custom --file=demo.dump postgres"
    $cluster exec pg_dump --format=custom --file="$dump" postgres
    show "createdb restored && pg_restore --dbname=restored --exit-on-error --single-transaction demo.dump"
    $cluster exec createdb restored
    $cluster exec pg_restore --dbname=restored --exit-on-error --single-transaction "$dump"
    note "In the database restored:"
    database=restored sql <<'SQL'
SELECT id, name, fieldcrypt.decrypt_field(ssn, fieldcrypt.context('patients.ssn', id)) FROM patients ORDER BY id LIMIT 3;
SELECT id, name, fieldcrypt.decrypt_field(iban, fieldcrypt.context('staff.iban', id)) FROM staff ORDER BY id;
SQL
    restored=$(database=restored value "SELECT count(fieldcrypt.decrypt_field(ssn, fieldcrypt.context('patients.ssn', id))) FROM patients")
    [[ $restored == 5 ]] || die "not all values open in the restored database"
}

tampering() {
    heading "Somebody changes the record"
    wait_for "SELECT count(*) FROM fieldcrypt.audit_log WHERE leaf IS NULL" 0
    note "Every row is sealed in a Merkle tree, of which a checkpoint is signed every few seconds. So somebody with all
-- rights on the tables can put another name to a failure, but it shows: row_changed, with the row's id."
    sql <<'SQL'
ALTER TABLE fieldcrypt.audit_log DISABLE TRIGGER refuse_change;
UPDATE fieldcrypt.audit_log SET actor = 'nobody' WHERE error_code = 'KF002';
ALTER TABLE fieldcrypt.audit_log ENABLE TRIGGER refuse_change;
SELECT status, finding, leaf, log_id FROM fieldcrypt.verify_audit_log() WHERE status <> 'ok';
SQL
}

wrong_master_key() {
    heading "A wrong master key"
    note "Somebody puts another key into the file:"
    new_master_key "$key"
    quietly 'SELECT pg_reload_conf()'
    fails KF010 <<'SQL'
SELECT fieldcrypt.decrypt_field(ssn, fieldcrypt.context('patients.ssn', 1)) FROM patients WHERE id = 1;
SQL
    note "With the right key back in its place, nothing is lost:"
    as_server cp -p "$key.right" "$key"
    quietly 'SELECT pg_reload_conf()'
    sql <<'SQL'
SELECT fieldcrypt.decrypt_field(ssn, fieldcrypt.context('patients.ssn', 1)) FROM patients WHERE id = 1;
SQL
    local value
    value=$(value "SELECT fieldcrypt.decrypt_field(ssn, fieldcrypt.context('patients.ssn', 1)) FROM patients WHERE id = 1")
    [[ $value == "$ssn" ]] || die "the value is not what was encrypted"
}

goodbye() {
    heading "Yours now"
    cat <<-TEXT
		    make psql    opens psql on this cluster
		    make stop    stops it

		The quick start for a server of your own is in README.md.
	TEXT
}

heading() { printf '\n\n%s\n%s\n' "$1" "${1//?/=}"; }
note() { printf '\n-- %s\n' "$1"; }
show() { printf '\n$ %s\n' "$1"; }

# Runs SQL from standard input and prints it with its results.
sql() {
    echo
    $cluster psql --no-psqlrc --username "${user:-postgres}" --dbname "${database:-postgres}" --set ON_ERROR_STOP=1 --set VERBOSITY=verbose \
        --set SHOW_CONTEXT=never --pset footer=off --pset null=- --echo-queries --quiet 2>&1 |
        sed -e '/^LOCATION: /d' -e 's/^NOTICE:  00000: /NOTICE:  /' -e 's/^psql:<stdin>:[0-9]*: //' |
        sed -zE 's/\n [a-z_]+ *\n-+\n *\n\n?/\n/g' # tables of a function that returns nothing
}

# The same for one statement that must be refused, with this SQLSTATE.
fails() {
    local said
    if said=$(sql) || [[ $said != *"ERROR:  $1: "* ]]; then
        echo "$said"
        die "this should have been refused with SQLSTATE $1"
    fi
    printf '\n%s\n' "${said#$'\n'}"
}

value() { $cluster psql --no-psqlrc --dbname "${database:-postgres}" --no-align --tuples-only --set ON_ERROR_STOP=1 --command "$1"; }
wait_for() {
    for _ in {1..100}; do
        if [[ $(value "$1") == "$2" ]]; then return; fi
        sleep 0.1
    done
    die "this did not become $2: $1"
}
quietly() { value "$1" >/dev/null; }

main | cat --squeeze-blank
