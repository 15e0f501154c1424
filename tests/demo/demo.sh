#!/usr/bin/env bash
# The main job, told step by step on a throw-away cluster. Every step is checked: if one does not
# do what the text says, the demo fails.
source "$(dirname "$0")/../../pgrx-config/lib.sh"

cluster=pgrx-config/cluster.sh
key=$work/demo/master.key
ssn=123-45-6789

main() {
    say "Starting a private cluster, with a master key file of its own"
    $cluster fresh
    new_master_key "$key"
    as_server cp -p "$key" "$key.right"
    as_server tee -a "$work/demo/data/postgresql.conf" >/dev/null <<<"fieldcrypt.master_key_file = '$key'"
    quietly 'SELECT pg_reload_conf()'

    as_it_was
    one_call
    same_code
    thief
    copied
    rights
    second_tenant
    rotate
    audit_log
    health
    report
    dump_and_restore
    tampering
    wrong_master_key
    goodbye
}

as_it_was() {
    heading "A table as it was"
    note "A column in plaintext, and an application that writes to it and reads it. An ORM sends the same."
    sql <<SQL
CREATE TABLE patients (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, name text NOT NULL, ssn text);
INSERT INTO patients (name, ssn) VALUES ('Ada', '$ssn'), ('Grace', '987-65-4321'), ('Alan', '555-12-3456');
SQL
}

one_call() {
    heading "One call"
    note "The setting fieldcrypt.master_key_file names the master key, which lies outside the data directory. The application goes on meanwhile."
    sql <<'SQL'
CREATE EXTENSION pg_fieldcrypt;
CALL fieldcrypt.encrypt_column('patients', 'ssn');
SQL
    note "The view shows what is encrypted, to who may see it. The plaintext is kept for undo_encrypt_column until it is dropped;
-- VACUUM FULL takes it off the disk."
    sql <<'SQL'
SELECT fieldcrypt.create_decrypted_view('patients');
SELECT fieldcrypt.drop_plaintext_column('patients', 'ssn');
VACUUM FULL patients;
SELECT fieldcrypt.audit_table('patients');
\d patients
SQL
}

same_code() {
    heading "The same code"
    note "Plaintext goes in by ordinary SQL, into the table or the view."
    sql <<'SQL'
INSERT INTO patients (name, ssn) VALUES ('Edsger', '321-54-9876');
INSERT INTO decrypted_patients (name, ssn) VALUES ('Barbara', '111-22-3333') RETURNING id, ssn;
UPDATE decrypted_patients SET name = 'Grace Hopper' WHERE ssn = '987-65-4321';
SELECT * FROM decrypted_patients ORDER BY id;
SQL
    local value
    value=$(value "SELECT ssn FROM decrypted_patients WHERE name = 'Ada'")
    [[ $value == "$ssn" ]] || die "the value is not what was taken over"
}

thief() {
    heading "What a thief sees"
    note "With SQL, in a dump, in a replica:"
    sql <<'SQL'
SELECT * FROM patients ORDER BY id LIMIT 2;
SQL
    show "pg_dump --table patients --data-only"
    $cluster exec pg_dump --table patients --data-only | grep '^[0-9]'
    quietly 'CHECKPOINT'
    note "In the table's files: how many hold a name (names are not encrypted here), and how many a number."
    show "grep --recursive --files-with-matches Grace \$PGDATA/base | wc -l"
    files_with Grace
    show "grep --recursive --files-with-matches $ssn \$PGDATA/base | wc -l"
    files_with "$ssn"
    (($(files_with Grace) > 0 && $(files_with "$ssn") == 0)) || die "that is not what should lie on the disk"
    note "WAL and backups from before the call hold the plaintext until they are gone."
}

files_with() {
    { as_server grep --recursive --files-with-matches --text --fixed-strings -e "$1" "$work/demo/data/base" || true; } | wc -l
}

copied() {
    heading "A value in another row"
    note "Each value is bound to its column and row. Ada's in Grace's row: an error, never a wrong value."
    fails KF037 <<'SQL'
UPDATE patients SET ssn = (SELECT ssn FROM patients WHERE name = 'Ada') WHERE name = 'Grace Hopper';
SQL
}

rights() {
    heading "A role that writes and can't read"
    sql <<'SQL'
CREATE ROLE app LOGIN;
GRANT SELECT, INSERT, UPDATE ON patients, decrypted_patients TO app;
SELECT fieldcrypt.grant_access('app', 'encrypt');
SQL
    note "Connected as app:"
    user=app sql <<'SQL'
INSERT INTO patients (name, ssn) VALUES ('Kurt', '222-33-4444');
SQL
    user=app fails 42501 <<'SQL'
SELECT ssn FROM decrypted_patients;
SQL
}

second_tenant() {
    heading "Many tenants"
    note "Each tenant has keys of its own, made at first use. A transaction that is locked to one neither reads nor writes another's."
    sql <<'SQL'
CREATE TABLE notes (id int PRIMARY KEY, tenant text NOT NULL, note fieldcrypt.encrypted_text);
SELECT fieldcrypt.protect_column('notes', 'note', tenant => 'tenant');
SELECT fieldcrypt.create_decrypted_view('notes');
INSERT INTO notes VALUES (1, 'acme', 'our secret'), (2, 'umbrella', 'theirs');
SELECT tenant, version, state FROM fieldcrypt.encryption_keys WHERE purpose = 'field' ORDER BY tenant;
SQL
    fails KF006 <<'SQL'
BEGIN;
SELECT fieldcrypt.lock_tenant('umbrella');
SELECT * FROM decrypted_notes;
SQL
}

rotate() {
    heading "Rotate the key"
    note "New values take the new key; old values stay readable. Then the old rows move to it, online and in batches."
    sql <<'SQL'
CALL fieldcrypt.rotate_keys('default', reason => 'demo');
INSERT INTO patients (name, ssn) VALUES ('Donald', '444-55-6666');
SELECT count(*) AS patients, count(DISTINCT fieldcrypt.key_id(ssn)) AS keys FROM patients;
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
    note "What was refused is recorded too, although its transaction was rolled back: KF037, 42501 and KF006, from above."
    note "The first keys are the log's own and the one that plaintext is taken in with, the third the one that the rows were encrypted with."
    wait_for "SELECT count(*) FROM fieldcrypt.audit_log WHERE event = 'decrypt_failed'" 2
    sql <<'SQL'
SELECT at::time(0), event, actor, key_id, row_key, error_code
FROM fieldcrypt.audit_log WHERE event <> 'master_key_loaded' ORDER BY id;
SQL
}

health() {
    heading "Is everything well?"
    note "What a new server still lacks: a verification every night, copies elsewhere. And \"default\" has values beside
-- two tenants'. The column hint says what to do."
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
SELECT * FROM decrypted_patients ORDER BY id LIMIT 3;
SQL
    restored=$(database=restored value "SELECT count(ssn) FROM decrypted_patients")
    [[ $restored == 7 ]] || die "not all values open in the restored database"
}

tampering() {
    heading "Somebody changes the record"
    wait_for "SELECT count(*) FROM fieldcrypt.audit_log WHERE leaf IS NULL" 0
    note "Every row is sealed in a Merkle tree, of which a checkpoint is signed every few seconds. So somebody with all
-- rights on the tables can put another name to a failure, but it shows: row_changed, with the row's id."
    sql <<'SQL'
ALTER TABLE fieldcrypt.audit_log DISABLE TRIGGER refuse_change;
UPDATE fieldcrypt.audit_log SET actor = 'nobody' WHERE error_code = 'KF037';
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
SELECT ssn FROM decrypted_patients WHERE id = 1;
SQL
    note "With the right key back in its place, nothing is lost:"
    as_server cp -p "$key.right" "$key"
    quietly 'SELECT pg_reload_conf()'
    sql <<'SQL'
SELECT ssn FROM decrypted_patients WHERE id = 1;
SQL
    local value
    value=$(value "SELECT ssn FROM decrypted_patients WHERE id = 1")
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
