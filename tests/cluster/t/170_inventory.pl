# Every object of the extension, with what it may do and who may use it: a new one is an entry here, or
# a failure. Nothing is for PUBLIC, whatever runs with the owner's rights has a search_path, everything
# says what it is; and what users do not call or read is not in the schema that they look at.

use strict;
use warnings;

use FieldcryptTest;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes ();

my $node = new_cluster('primary', extension => 0, conf => "shared_preload_libraries = 'pg_fieldcrypt'\n");

# What somebody else set up before must not leak into the extension.
value($node, <<'SQL');
CREATE ROLE app LOGIN;
ALTER DEFAULT PRIVILEGES GRANT ALL ON TABLES TO app;
ALTER DEFAULT PRIVILEGES GRANT ALL ON SEQUENCES TO app;
ALTER DEFAULT PRIVILEGES GRANT ALL ON FUNCTIONS TO app;
ALTER DEFAULT PRIVILEGES GRANT ALL ON TYPES TO app;
ALTER DEFAULT PRIVILEGES GRANT ALL ON SCHEMAS TO app;
CREATE DATABASE with_defaults;
SQL
value($node, 'CREATE EXTENSION pg_fieldcrypt');

# volatility, parallel safety, then: s strict, d SECURITY DEFINER, p its search_path is set, l leakproof.
my %expected;
# What users see, by the version that it is there since: what was released stays, by its name and its arguments. A function
# that they do not call by name, or a table that they do not read, belongs below.
$expected{fieldcrypt} = <<'EXPECTED';
since 0.1.0
function acknowledge_audit_findings(text) v u
function acknowledge_audit_fork(text) v u
function audit_export(timestamp with time zone,timestamp with time zone) v u
function audit_proof(bigint) v u
function audit_status() v u d p
function audit_table(regclass) v u p
function cancel_destroy_key(bigint,text) v u
function ciphertext_info(encrypted) i s s
function ciphertext_text(encrypted) i s s
function compliance_report(text,timestamp with time zone,timestamp with time zone,boolean,boolean) v u d p
function compliance_report_html(text,timestamp with time zone,timestamp with time zone,boolean,boolean) v u d p
function confirm_key_states(text) v u d p
function context("any") i s
function create_key(text) v u
function decrypt_field(encrypted,text) s s
function decrypt_field_as(encrypted,anyelement,text) s s
function decrypt_field_bytea(encrypted,text) s s
function decrypt_field_jsonb(encrypted,text) s s
function encrypt_field(text,text,text) v u
function encrypt_field_as(anyelement,text,text) v u
function encrypt_field_bytea(bytea,text,text) v u
function encrypt_field_jsonb(jsonb,text,text) v u
function export_keys() v u d p
function fieldcrypt_stats_reset() v r
function grant_access(regrole,text[]) v u p
function health(boolean) v u d p
function import_keys(text,boolean,boolean) v u d p
function key_id(encrypted) i s s
function key_states_status(text) v u d p
function key_usage(boolean) v u d p
function lock_tenant(text) v u
function mark_compromised(bigint,text) v u
function master_key_status() v u d p
function rebind_field(encrypted,text,text) v u
function reencrypt_field(encrypted,text) v u
function request_approval(text,text,text,interval) v u d p
function resume_key(bigint,text) v u
function retire_keys(integer,text,interval,text) v u d p
function revoke_access(regrole,text[]) v u p
function rotate_key(text,text) v u d p
function schedule_alerts(text,text) v u p
function schedule_rotation(text,text,text) v u p
function set_column_context(regclass,name,text,text,boolean) v u
function set_rotation_policy(text,interval) v u d p
function snapshot_access() v u d p
function suspend_key(bigint,text) v u
function try_decrypt_field(encrypted,text) s s
function unaudit_table(regclass) v u p
function unschedule_alerts() v u p
function unschedule_rotation() v u p
function verify_audit_log(timestamp with time zone,timestamp with time zone,text) v u d p
function verify_keys() v u d p
function who_could(text,timestamp with time zone) s u p
function withdraw_approval(bigint) v u d p
procedure apply_audit_retention() v u
procedure approve(bigint) v u
procedure check_alerts() v u
procedure check_audit_log() v u
procedure destroy_due_keys(boolean) v u
procedure destroy_key(bigint,interval,text) v u
procedure reencrypt(regclass,integer,integer,bigint,interval,interval) v u
procedure rotate_keys(text,text,boolean) v u
procedure rotate_master_key(integer,interval) v u
procedure shred_tenant(text,text) v u
procedure verify_values(regclass,name) v u
table alerts
table approvals
table audit_checkpoints
table audit_log
table audit_origins
table audit_retirements
table audit_signers
table audit_verifications
table column_contexts
table encryption_keys
table master_keys
table origins
table reencryption_failures
table rotation_log
table rotation_policies
table value_failures
table value_verifications
view audit_trail
view fieldcrypt_stats
view reencryption_progress
since 0.2.0
function column_migration_step(regclass,text,text) v u
function create_decrypted_view(regclass,text,text[]) v u
function create_loose_key() v u
function drop_plaintext_column(regclass,name) v u p
function is_protected(encrypted_text,text,text,text,text,"any") i s
function is_sealed_as(encrypted,text,"any",integer) v u
function loosen(encrypted,text) v u
function protect_column(regclass,name,text[],name,text,text) v u
function unprotect_column(regclass,name) v u
function write_decrypted_view() v u trigger
procedure column_migration_run(regclass,name,text,integer,integer,interval,text,boolean) v u
procedure encrypt_column(regclass,name,text[],name,text,text,text,integer,integer,boolean,boolean,interval) v u
procedure undo_encrypt_column(regclass,name,text,boolean,interval) v u
view column_migrations
EXPECTED
# What that is made of.
$expected{fieldcrypt_internal} = <<'EXPECTED';
function access_step() v u d p
function access_words(text) s u p
function add_declaration(oid,text,text,text,text,text,text[]) v u p
function add_result(reencryption_chunks,jsonb) v u p
function after_alter(text) v u p
function alert_jobs(text,text) s u p
function alert_payload(text,text,text,text,text,timestamp with time zone) v u p
function alert_step() v u d p
function altered_tables(text,oid) s u p
function approve_step(bigint) v u d p
function audit_change() v u trigger
function audit_log_findings(timestamp with time zone,timestamp with time zone,text) v u
function audit_queue_status() v s
function audit_retention() s u
function audit_triggers() s u p
function audit_triggers_state(regclass) v u p
function audited_table_problems() s u p
function before_alter(text,oid) v u p
function begin_master_key_rotation(bytea) v u d p
function begin_migration(oid,text,jsonb) v u p
function begin_undo(oid,text) v u p
function believe_protection(oid,text) v u p
function bind_values() v u trigger
function bindings_of(oid) v u p
function by_own_hand() v u
function carry_column() v u trigger
function carry_over(oid,text,text) v u p
function change_access(regrole,text[],boolean) v u p
function check_audit_anchor(jsonb) v u p
function check_audit_fork(jsonb) v u p
function check_audit_gaps(jsonb) v u p
function check_audit_handover(jsonb) v u p
function check_audit_key_age(jsonb) v u p
function check_audit_sealing(jsonb) v u p
function check_audit_verification(jsonb) v u p
function check_audited_tables(jsonb) v u p
function check_compromised_keys(jsonb) v u p
function check_deactivated_keys(jsonb) v u p
function check_default_tenant(jsonb) v u p
function check_encrypted_indexes(jsonb) v u p
function check_enforced_contexts(jsonb) v u p
function check_extension_version(jsonb) v u p
function check_failed_decrypts(jsonb) v u p
function check_key_age(jsonb) v u p
function check_key_destruction(jsonb) v u p
function check_key_export(jsonb) v u p
function check_key_states(jsonb) v u p
function check_key_subscriptions(jsonb) v u p
function check_master_key(jsonb) v u p
function check_master_key_age(jsonb) v u p
function check_master_key_rotation(jsonb) v u p
function check_master_key_source(jsonb) v u p
function check_missing_keys(jsonb) v u p
function check_plaintext_columns(jsonb) v u p
function check_preload(jsonb) v u p
function check_protected_columns(jsonb) v u p
function check_published_tables(jsonb) v u p
function check_reencryption(jsonb) v u p
function check_require_tenant(jsonb) v u p
function check_restore_order(jsonb) v u p
function check_server_file_roles(jsonb) v u p
function check_statement_logging(jsonb) v u p
function check_statement_visibility(jsonb) v u p
function check_stored_values(jsonb) v u p
function check_suspended_keys(jsonb) v u p
function check_unusual_addresses(jsonb) v u p
function check_unusual_hours(jsonb) v u p
function check_unusual_volume(jsonb) v u p
function check_values_elsewhere(jsonb) v u p
function claim_chunk(integer,oid[]) v u d p
function column_dependents(oid,text) s u p
function column_names(oid) s u p
function column_twins() s u p
function complete_privileges() v u p
function contexts_of(oid) s u d p
function count_active_tenants() s u d p
function count_in(oid,bigint[]) v u p
function count_keys(oid) v u
function count_migration(oid,text,jsonb) v u p
function count_use(bigint[]) v u p
function counted_names(text[],bigint,text,bigint) s u p
function create_binding_triggers(oid) v u p
function create_enforcing_triggers(oid,text,text,text) v u p
function create_twin_trigger(oid,integer,text,text,text) v u p
function declarations(oid) v u
function declared(oid,text,text,boolean) v u s
function declared_columns(oid) v u p
function declare_protection(oid,text,jsonb,text,text,text) v u p
function decrypted_by(text,text,timestamp with time zone,timestamp with time zone,interval,integer) v u p
function decrypted_from(inet,timestamp with time zone,timestamp with time zone,integer) v u p
function decrypted_view(oid,text,jsonb) v u p
function decrypting_addresses(timestamp with time zone) v u p
function defaults_of_view(oid,text[],jsonb) s u p
function decrypting_roles(timestamp with time zone) v u p
function destroy_step(bigint[],boolean) v u d p
function distributed_tables() s u p
function drop_binding_triggers(oid) v u p
function drop_enforcing_triggers(oid,text) v u p
function drop_twin(oid,text) v u p
function due_audit_key(boolean,timestamp with time zone) s u d p
function due_loose_key(boolean,timestamp with time zone) s u d p
function effective_access() s u p
function empty_audit_partition(text) v u p
function encrypted_columns() s u d p
function encrypted_from_bytea(bytea) i s s
function encrypted_hash(encrypted) i s s
function encrypted_hash_extended(encrypted,bigint) i s s
function encrypted_in(cstring) i s s
function encrypted_less(encrypted,encrypted) i s s
function encrypted_less_or_same(encrypted,encrypted) i s s
function encrypted_more(encrypted,encrypted) i s s
function encrypted_more_or_same(encrypted,encrypted) i s s
function encrypted_not_same(encrypted,encrypted) i s s
function encrypted_order(encrypted,encrypted) i s s
function encrypted_out(encrypted) i s s
function encrypted_recv(internal) i s s
function encrypted_same(encrypted,encrypted) i s s
function encrypted_send(encrypted) i s s
function encrypted_sort(internal) i s s
function encrypted_text_from("any") s s s
function encrypted_text_in(cstring) s s s
function encrypted_text_out(encrypted_text) i s s
function encrypted_text_recv(internal) s s s
function encrypted_text_send(encrypted_text) i s s
function enforcing_triggers() s u p
function erase_key(bigint,text) v u
function erase_tenant_keys(text,text) v u
function event_words() i u p
function exported_keys(json) s u p
function fail_migration(oid,text,jsonb) v u p
function fail_table(oid,text,text) v u p
function finding_identity(text[],bigint) s u p
function finding_of(text,text,text,text[]) i u p
function finish_master_key_rotation() v u d p
function finish_migration(oid,text) v u p
function follow_parents(oid,jsonb) v u p
function forget_alert(text) v u
function forget_migration(oid,jsonb) v u p
function forget_table(oid) v u p
function form_of_type(oid) s u p
function free_constraint_name(oid,text,text) s u p
function functions_called_by(oid) s u p
function functions_needing_keys(oid[]) s u p
function guard_drops() v u
function has_audit_trigger(regclass,text) s u p
function health_findings(boolean) v u p
function health_hours() v u
function health_threshold(text) s u p
function held_of(regrole,text[]) s u p
function held_privileges(regrole) s u p
function held_run() v u
function hold_run(bigint) v u
function import_contents(json,integer,integer) v u p
function import_document(text,boolean,boolean) v u
function insert_approval(bigint,text,text,text,bigint) v u
function invalidate_keys() v u trigger
function is_applying() s s
function is_being_restored() v u p
function is_changed_to_foreign("any",text,"any",text,text) v u
function is_foreign("any",text,text) v u
function is_left(reencryptions,integer) v u p
function is_loose(encrypted_text) i s s
function is_owner(column_contexts,oid) s u p
function is_preloaded() v u p
function is_reencrypting() v u p
function is_said_to_be_audited(regclass) s u d p
function is_twin(anyelement,encrypted_text,text) i s
function is_use_recorded() s u p
function keep_contexts_of_parent(oid,oid) v u p
function keep_own() v u trigger
function key_of_places(oid,text,jsonb,text) s u p
function key_of_text(text) i s s
function key_problem(bigint) v u
function keys_from(text) v u
function keys_to_rewrap(bytea) v u d p
function keys_with_values(text,jsonb) v u p
function lagging_tables(timestamp with time zone,bigint) v u p
function leave_columns(oid,jsonb) v u p
function left_alone(jsonb) i u p
function lets_values_out(text,text) i u p
function library_version() s s
function list_failures(oid,jsonb) v u p
function list_of(text[],integer) s u p
function literals() v u p
function live_runs() s u d p
function loaded_master_keys() v r
function lock_audit_partition(text) v u p
function lock_holders(regclass) v u d p
function lock_master_keys() v u
function lock_migration(oid,text) v u p
function log_rotation(timestamp with time zone,timestamp with time zone,text,text,bigint,bigint,text,text,text) v u
function logged_states() s u p
function login_role() s r
function make_current(bytea) v u
function mark_approved(bigint) v u
function mark_used(bigint) v u
function mark_withdrawn(bigint) v u
function master_key_source() v u
function migration_plan(oid,text) v u p
function migration_step(oid,text,jsonb) v u p
function move_contexts(jsonb) v u p
function name_beside(text,text) i u p
function name_of_places(oid,text,text) s u p
function needs_approval(text) s u
function next_audit_partition(text) v u d p
function next_of_migration(oid,text,jsonb) v u p
function next_tenant(text,boolean,timestamp with time zone) s u d p
function note_alter() v u
function note_declarations() v u
function note_table_audit(regclass) v u d p
function on_table(oid,text) v u
function opened_of_tally(jsonb) i u p
function origin_checks() v u p
function origin_here() v u p
function other_nodes() v u d p
function outer_role() s s
function own_migration(oid,text,boolean) v u p
function plan_comparison(internal) i s s
function plan_match(internal) i s s
function plan_member(internal) i s s
function plan_order(internal) i s s
function plan_text(internal) i s s
function privilege_objects(text) s u p
function problem_of_migration(oid,text,boolean,text) s u p
function problems_of_audited_table(regclass) s u d p
function problems_of_protected_columns() v u p
function protected_columns() v u p
function publications_of_keys() s u p
function qualified_name(oid) s u p
function quiet_step(bigint) v u d p
function quoted_name(text) s u p
function read_export(text) v u
function record_approval(text,text,text,text) v u p
function record_event(text,text,bigint,text,text) v u
function record_origin(boolean,text) v u
function record_table_audit(regclass,boolean) v u d p
function redaction_is_active() v u
function reencrypt_batch(oid,bigint,bigint,bigint,bigint,bigint,boolean,text,boolean) v u
function reencrypt_begin(regclass) v u d p
function reencrypt_end(integer) v u d p
function reencrypt_position() v u
function reencrypt_step(integer,oid[],bigint) v u d p
function refuse_change() v u trigger
function refuse_comparison(encrypted,any_encrypted) i s
function refuse_comparison_of_text(text,encrypted) i s
function refuse_comparison_with_text(encrypted,text) i s
function refuse_declaration(text,text) v u p
function refuse_dependents(oid,text,jsonb) v u p
function refuse_destruction(bigint,interval) v u p
function refuse_element(encrypted,integer) i s
function refuse_encrypted_name(encrypted_text) i s
function refuse_encrypted_text(encrypted_text) i s
function refuse_foreign() v u trigger
function refuse_index(oid) i s s
function refuse_match(encrypted,text) i s
function refuse_member(encrypted,text) i s
function refuse_migration(text,text,text) v u p
function refuse_name(encrypted) i s
function refuse_order(encrypted,encrypted) i s
function refuse_restore_over() v u trigger
function refuse_restore_over_log() v u trigger
function refuse_taken_names() v u p
function refuse_text(encrypted) i s
function refuse_undeclared(oid,jsonb) v u p
function refuse_unless_committable() v u
function refuse_unless_made_here(text) v u
function refuse_unless_own_hand() v u
function refuse_unless_own_run(integer) v u p
function refuse_unless_protectable(oid,text,text,text,boolean) v u p
function refuse_unless_recordable(text) s u p
function refuse_unless_writable() v u
function refuse_without_cron(jsonb) v u p
function relations_to_count() v u p
function release_run() v u
function remember_column_context(oid,text,text,text,boolean,boolean,text,text) v u p
function remember_table_audit(bigint,bigint) v u
function remembered_table_audit(bigint) v u
function renamed_expression(oid,text,text,text) v u
function renumber_key(bigint,integer) v u
function report_access(timestamp with time zone,timestamp with time zone,integer) s u p
function report_approvals(text,timestamp with time zone,timestamp with time zone,integer) s u p
function report_buckets(timestamp with time zone,timestamp with time zone,integer) s u p
function report_cryptography() s u p
function report_destruction(text,timestamp with time zone,timestamp with time zone,integer) s u p
function report_events(text[],text,timestamp with time zone,timestamp with time zone,integer) s u p
function report_exports(timestamp with time zone,timestamp with time zone,integer) v u p
function report_health(text,jsonb) v u p
function report_key_list(text,text[],integer) s u p
function report_keys(text,timestamp with time zone,timestamp with time zone,integer) s u p
function report_limits() s u p
function report_log(text,timestamp with time zone,timestamp with time zone,integer) v u p
function report_master_keys(text,timestamp with time zone,timestamp with time zone,integer) v u p
function report_page(jsonb) i s
function report_reencryption(text,boolean,integer) v u p
function report_requirements() s u p
function report_rotation(text,timestamp with time zone,timestamp with time zone,integer) s u p
function report_usage(boolean) v u p
function report_use(text,timestamp with time zone,timestamp with time zone,integer) s u p
function report_verification(text,timestamp with time zone,timestamp with time zone,timestamp with time zone,timestamp with time zone,boolean,integer) v u p
function report_verified(text,timestamp with time zone,timestamp with time zone,boolean,integer) v u p
function retire_audit_partition(text) v u
function retire_audit_step(text) v u d p
function retire_master_keys() v u
function rewrap_keys(bytea,text) v u
function rewrap_step(bytea,bigint,integer) v u d p
function role_here(oid) s u p
function rotate_active_key(text,text,boolean,bigint) v u
function rotate_step(text,text,boolean,bigint) v u d p
function row_identity(oid) s u p
function said_of_columns(jsonb) i u p
function save_chunk(reencryption_chunks,integer,bigint) v u p
function schedule_destruction(bigint,bigint,text) v u
function schedule_jobs(jsonb) v u p
function schedule_step(bigint,interval,text) v u d p
function schedule_unused(bigint,interval,text,jsonb) v u p
function scheduled_jobs(text,text,text) s u p
function scheduled_keys() v u d p
function seal_export(text) v u
function set_destroy_horizon(bigint,text) v u
function set_key_state(bigint,text,text) v u
function settings_that_hold(text[]) v u p
function short_fingerprint(bytea) i u p
function shown_column(jsonb,text) i u p
function shown_text(text,integer) s u p
function shred_step(text,text) v u d p
function spend_approval(text,text) v u p
function state_rank(text) i u p
function statements_of_marks(oid,jsonb,text) s u p
function statements_of_migration(jsonb,text,oid) s u p
function states_confirmed() v u d p
function store_alert(text,text,text,text,text,boolean) v u
function store_rotation_policy(text,text) v u
function store_verification(timestamp with time zone,text,bigint,text) v u
function sum_of_tallies(jsonb,jsonb) i u p
function swap_migration(oid,text) v u p
function table_blocks(oid) v u p
function tables_said_to_be_audited() s u p
function take_marks(oid,text,jsonb) v u p
function take_migration(oid,text,jsonb,text) v u p
function take_over() v u p trigger
function target_master_key() v u
function tell_dependents(oid,text,boolean,boolean) v u p
function tenant_statistics() v r
function time_ago(timestamp with time zone) v u p
function trigger_bypass() s u p
function uncountable(timestamp with time zone) v u p
function undo_migration(oid,text) v u p
function unschedule_jobs(jsonb) v u p
function use_of_key(jsonb,bigint) s u p
function utc_text(timestamp with time zone) s u p
function validate_migration(oid,text) v u p
function values_elsewhere() v u p
function verification_step() v u d p
function verify_batch(oid,bigint,bigint,bigint,bigint,text) v u
function verify_begin(regclass,text) v u d p
function verify_step(oid) v u d p
function version_parts(text) i u p
function with_descendants(oid) s u p
function withdraw_protection(oid,text) v u p
function without_figures(text) i u p
function write_origin(boolean,text) v u p
sequence approvals_id_seq
sequence audit_log_id_seq
sequence migration_mark_numbers
sequence reencryption_numbers
table audit_log_20
table audit_log_default
table column_migrations
table master_key_rotation
table migration_marks
table reencryption_chunks
table reencryption_runs
table reencryptions
type health_finding
EXPECTED

my $inventory = <<'SQL';
SELECT format('%s %s(%s) %s', CASE prokind WHEN 'p' THEN 'procedure' ELSE 'function' END, proname,
              replace(regexp_replace(oidvectortypes(proargtypes), 'fieldcrypt(_internal)?\.', '', 'g'), ', ', ','),
              concat_ws(' ', provolatile, proparallel, CASE WHEN proisstrict THEN 's' END, CASE WHEN prosecdef THEN 'd' END,
                        CASE WHEN 'search_path=pg_catalog, pg_temp' = ANY (proconfig) THEN 'p' END,
                        CASE WHEN proleakproof THEN 'l' END, CASE WHEN prorettype = 'trigger'::regtype THEN 'trigger' END))
  FROM pg_proc WHERE pronamespace = 'SCHEMA'::regnamespace
UNION ALL
SELECT DISTINCT CASE relkind WHEN 'S' THEN 'sequence ' WHEN 'v' THEN 'view ' WHEN 'c' THEN 'type ' ELSE 'table ' END || regexp_replace(relname, '^audit_log_20\d\d$', 'audit_log_20')
  FROM pg_class WHERE relnamespace = 'SCHEMA'::regnamespace AND relkind NOT IN ('i', 'I')
SQL
foreach my $schema (sort keys %expected)
{
	my @expected = grep { !/^since / } split /\n/, $expected{$schema};
	my @got = split /\n/, value($node, $inventory =~ s/SCHEMA/$schema/gr);
	is_deeply([ sort @got ], [ sort @expected ], "every function, table and sequence of $schema is listed, as it is")
	  or do { my %e = map { $_ => 1 } @expected; my %g = map { $_ => 1 } @got; diag "not expected:\n" . join("\n", grep { !$e{$_} } sort keys %g) . "\nmissing:\n" . join("\n", grep { !$g{$_} } sort keys %e) };
}

# What is listed as of a version was in it, and what was in it is listed: nothing that users call goes away.
foreach my $version (map { m{/pg_fieldcrypt--([0-9.]+)\.sql$} ? $1 : () } glob "$ENV{TESTDIR}/sql/released/*.sql")
{
	my ($since, @listed) = ('');
	foreach my $line (split /\n/, $expected{fieldcrypt})
	{
		if ($line =~ /^since (.*)/) { $since = $1 }
		elsif (older_or_same($since, $version)) { push @listed, $line }
	}
	my $db = 'as_' . $version =~ tr/./_/r;
	value($node, "CREATE DATABASE $db");
	value($node, "CREATE EXTENSION pg_fieldcrypt VERSION '$version'", db => $db);
	my $signatures = sub { return [ sort map { s/^((?:function|procedure) [^)]*\)).*/$1/r } @_ ] };
	is_deeply($signatures->(split /\n/, value($node, $inventory =~ s/SCHEMA/fieldcrypt/gr, db => $db)), $signatures->(@listed), "what users call since $version, or longer");
}

sub older_or_same
{
	my ($one, $other) = map { join '', map { sprintf '%05d', $_ } split /\./ } @_;
	return $one le $other;
}

# What the README tells users to type fits on two screens; the tables and views, which say more, on a few.
foreach my $look ([ '\df fieldcrypt.*', 100 ], [ '\dt fieldcrypt.*', 40 ], [ '\dv fieldcrypt.*', 40 ], [ '\d fieldcrypt.*', 760 ])
{
	my ($command, $most) = @$look;
	my ($out, $err) = run_command([ 'psql', '-X', '-w', '-d', $node->connstr('postgres'), '-c', $command ]);
	my $lines = () = "$out\n" =~ /\n/g;
	cmp_ok($lines, '>', 5, "$command shows something");
	cmp_ok($lines, '<=', $most, "$command has at most $most lines: $lines");
	unlike($out, qr/fieldcrypt_internal \|| _\w/, "$command shows no internals");
}

# Rules that hold for all of them, listed or not: each query finds the breaches.
my %rules = (
	'no internal has the name of what users call, or of what was one' => <<'SQL',
SELECT u.oid::regprocedure FROM pg_proc AS u WHERE u.pronamespace = 'fieldcrypt'::regnamespace
   AND (u.proname ~ '^_' OR EXISTS (SELECT FROM pg_proc AS i WHERE i.pronamespace = 'fieldcrypt_internal'::regnamespace AND i.proname = u.proname))
SQL
	'every object of the schemas belongs to the extension' => <<'SQL',
SELECT format('%s', o.name) FROM (
    SELECT 'pg_proc'::regclass AS class, oid, oid::regprocedure::text AS name FROM pg_proc WHERE pronamespace = ANY ('{fieldcrypt,fieldcrypt_internal}'::regnamespace[])
    UNION ALL SELECT 'pg_class'::regclass, oid, oid::regclass::text FROM pg_class WHERE relnamespace = ANY ('{fieldcrypt,fieldcrypt_internal}'::regnamespace[]) AND relkind NOT IN ('i', 'I', 'c')
    UNION ALL SELECT 'pg_type'::regclass, t.oid, t.oid::regtype::text FROM pg_type AS t WHERE typnamespace = ANY ('{fieldcrypt,fieldcrypt_internal}'::regnamespace[])
        AND NOT EXISTS (SELECT FROM pg_class AS c WHERE c.oid = t.typrelid AND c.relkind <> 'c') AND NOT EXISTS (SELECT FROM pg_type AS e WHERE e.typarray = t.oid)
    UNION ALL SELECT 'pg_operator'::regclass, oid, oid::regoperator::text FROM pg_operator WHERE oprnamespace = ANY ('{fieldcrypt,fieldcrypt_internal}'::regnamespace[])
) AS o WHERE NOT EXISTS (SELECT FROM pg_depend WHERE classid = o.class AND objid = o.oid AND deptype = 'e')
SQL
	'nothing of the extension lies in another schema, but for operators and aggregates that refuse' => <<'SQL',
SELECT pg_describe_object(d.classid, d.objid, 0) FROM pg_depend AS d
 WHERE d.refclassid = 'pg_extension'::regclass AND d.refobjid = (SELECT oid FROM pg_extension WHERE extname = 'pg_fieldcrypt') AND d.deptype = 'e'
   AND coalesce((SELECT i.schema FROM pg_identify_object(d.classid, d.objid, 0) AS i) NOT IN ('fieldcrypt', 'fieldcrypt_internal'), true)
   AND d.classid NOT IN ('pg_namespace'::regclass, 'pg_cast'::regclass)
   AND NOT (d.classid = 'pg_event_trigger'::regclass AND (SELECT e.evtname ~ '^fieldcrypt_' AND e.evtenabled = 'A' FROM pg_event_trigger AS e WHERE e.oid = d.objid))
   AND NOT EXISTS (SELECT FROM pg_operator AS o WHERE d.classid = 'pg_operator'::regclass AND o.oid = d.objid AND o.oprcode::text LIKE 'fieldcrypt_internal.refuse_%')
   AND NOT EXISTS (SELECT FROM pg_aggregate AS a WHERE d.classid = 'pg_proc'::regclass AND a.aggfnoid = d.objid AND a.aggtransfn::text LIKE 'fieldcrypt_internal.refuse_%')
SQL
	'everything has one owner' => <<'SQL',
SELECT x.name FROM (
    SELECT oid::regprocedure::text, proowner FROM pg_proc WHERE pronamespace = ANY ('{fieldcrypt,fieldcrypt_internal}'::regnamespace[])
    UNION ALL SELECT oid::regclass::text, relowner FROM pg_class WHERE relnamespace = ANY ('{fieldcrypt,fieldcrypt_internal}'::regnamespace[])
    UNION ALL SELECT oid::regtype::text, typowner FROM pg_type WHERE typnamespace = ANY ('{fieldcrypt,fieldcrypt_internal}'::regnamespace[])
    UNION ALL SELECT nspname::text, nspowner FROM pg_namespace WHERE nspname IN ('fieldcrypt', 'fieldcrypt_internal')
    UNION ALL SELECT oid::regoperator::text, oprowner FROM pg_operator WHERE oprnamespace = ANY ('{fieldcrypt,fieldcrypt_internal}'::regnamespace[])
) AS x (name, owner) WHERE owner <> (SELECT nspowner FROM pg_namespace WHERE nspname = 'fieldcrypt')
SQL
	'nobody but the owner has any right, PUBLIC least of all' => <<'SQL',
SELECT format('%s: %s to %s', x.name, a.privilege_type, a.grantee::regrole) FROM (
    SELECT oid::regprocedure::text, coalesce(proacl, acldefault('f', proowner)), proowner FROM pg_proc WHERE pronamespace = ANY ('{fieldcrypt,fieldcrypt_internal}'::regnamespace[])
    UNION ALL SELECT oid::regclass::text, coalesce(relacl, acldefault(CASE relkind WHEN 'S' THEN 's' ELSE 'r' END::"char", relowner)), relowner
                FROM pg_class WHERE relnamespace = ANY ('{fieldcrypt,fieldcrypt_internal}'::regnamespace[]) AND relkind NOT IN ('i', 'I')
    UNION ALL SELECT attrelid::regclass::text || '.' || attname, attacl, relowner FROM pg_attribute JOIN pg_class ON pg_class.oid = attrelid WHERE relnamespace = ANY ('{fieldcrypt,fieldcrypt_internal}'::regnamespace[])
    UNION ALL SELECT oid::regtype::text, coalesce(typacl, acldefault('T', typowner)), typowner FROM pg_type
               WHERE typnamespace = ANY ('{fieldcrypt,fieldcrypt_internal}'::regnamespace[]) AND typelem = 0 AND NOT EXISTS (SELECT FROM pg_class AS c WHERE c.oid = typrelid AND c.relkind <> 'c')
    UNION ALL SELECT nspname::text, coalesce(nspacl, acldefault('n', nspowner)), nspowner FROM pg_namespace WHERE nspname IN ('fieldcrypt', 'fieldcrypt_internal')
) AS x (name, acl, owner), aclexplode(x.acl) AS a WHERE a.grantee <> x.owner
   -- Everybody's constraints and triggers compute these. The first reads nothing, the second a header; the others answer
   -- yes or no, and are in a schema in which nobody can name them.
   AND x.name <> ALL ('{"fieldcrypt.context(\"any\")","fieldcrypt.is_protected(fieldcrypt.encrypted_text,text,text,text,text,\"any\")","fieldcrypt_internal.is_foreign(\"any\",text,text)","fieldcrypt_internal.is_changed_to_foreign(\"any\",text,\"any\",text,text)","fieldcrypt_internal.is_twin(anyelement,fieldcrypt.encrypted_text,text)","fieldcrypt_internal.bind_values()","fieldcrypt_internal.carry_column()","fieldcrypt_internal.refuse_comparison(fieldcrypt.encrypted,fieldcrypt_internal.any_encrypted)","fieldcrypt_internal.refuse_comparison_with_text(fieldcrypt.encrypted,text)","fieldcrypt_internal.refuse_comparison_of_text(text,fieldcrypt.encrypted)","fieldcrypt_internal.refuse_match(fieldcrypt.encrypted,text)","fieldcrypt_internal.refuse_member(fieldcrypt.encrypted,text)","fieldcrypt_internal.refuse_element(fieldcrypt.encrypted,integer)","fieldcrypt_internal.refuse_order(fieldcrypt.encrypted,fieldcrypt.encrypted)","fieldcrypt_internal.refuse_text(fieldcrypt.encrypted)","fieldcrypt_internal.refuse_name(fieldcrypt.encrypted)","fieldcrypt_internal.refuse_encrypted_text(fieldcrypt.encrypted_text)","fieldcrypt_internal.refuse_encrypted_name(fieldcrypt.encrypted_text)","fieldcrypt_internal.any_encrypted"}'::text[])
SQL
	'what runs with the owner\'s rights has a search_path' => <<'SQL',
SELECT oid::regprocedure FROM pg_proc WHERE pronamespace = ANY ('{fieldcrypt,fieldcrypt_internal}'::regnamespace[]) AND prosecdef
   AND NOT coalesce('search_path=pg_catalog, pg_temp' = ANY (proconfig), false)
SQL
	'SQL and PL/pgSQL functions have a search_path; procedures that commit cannot' => <<'SQL',
SELECT p.oid::regprocedure FROM pg_proc AS p JOIN pg_language AS l ON l.oid = p.prolang
 WHERE pronamespace = ANY ('{fieldcrypt,fieldcrypt_internal}'::regnamespace[]) AND l.lanname IN ('sql', 'plpgsql') AND prokind = 'f' AND proconfig IS NULL
   -- With one its body would not be put in its place: it is computed for each row that is written.
   AND p.oid <> 'fieldcrypt_internal.is_twin(anyelement,fieldcrypt.encrypted_text,text)'::regprocedure
SQL
	'procedures run with their caller\'s rights' => <<'SQL',
SELECT oid::regprocedure FROM pg_proc WHERE pronamespace = ANY ('{fieldcrypt,fieldcrypt_internal}'::regnamespace[]) AND prokind = 'p' AND (prosecdef OR proconfig IS NOT NULL)
SQL
	'what decrypts is never immutable, never leakproof' => <<'SQL',
SELECT oid::regprocedure FROM pg_proc WHERE pronamespace = ANY ('{fieldcrypt,fieldcrypt_internal}'::regnamespace[]) AND proname ~ 'decrypt|reencrypt' AND (provolatile = 'i' OR proleakproof)
SQL
	'nothing is leakproof' => q{SELECT oid::regprocedure FROM pg_proc WHERE pronamespace = ANY ('{fieldcrypt,fieldcrypt_internal}'::regnamespace[]) AND proleakproof},
	'what takes a context or tenant is not STRICT' => <<'SQL',
SELECT oid::regprocedure FROM pg_proc WHERE pronamespace = ANY ('{fieldcrypt,fieldcrypt_internal}'::regnamespace[]) AND proisstrict AND proargnames && '{context,tenant}'
SQL
	'what may make a key is volatile and parallel unsafe' => <<'SQL',
SELECT oid::regprocedure FROM pg_proc WHERE pronamespace = ANY ('{fieldcrypt,fieldcrypt_internal}'::regnamespace[]) AND proname ~ 'encrypt_field|(create|rotate|rewrap)_key|rotate' AND proname !~ 'decrypt'
   AND (provolatile <> 'v' OR proparallel <> 'u')
SQL
	# Indexes have no comment; row types and array types are those of their table or element.
	'every object says what it is' => <<'SQL',
SELECT x.name FROM (
    SELECT oid::regprocedure::text, obj_description(oid, 'pg_proc') FROM pg_proc WHERE pronamespace = ANY ('{fieldcrypt,fieldcrypt_internal}'::regnamespace[])
    UNION ALL SELECT oid::regclass::text, obj_description(oid, 'pg_class') FROM pg_class WHERE relnamespace = ANY ('{fieldcrypt,fieldcrypt_internal}'::regnamespace[]) AND relkind NOT IN ('i', 'I', 'c')
    UNION ALL SELECT oid::regtype::text, obj_description(oid, 'pg_type') FROM pg_type AS t WHERE typnamespace = ANY ('{fieldcrypt,fieldcrypt_internal}'::regnamespace[])
        AND NOT EXISTS (SELECT FROM pg_class AS c WHERE c.oid = t.typrelid AND c.relkind <> 'c') AND NOT EXISTS (SELECT FROM pg_type AS e WHERE e.typarray = t.oid)
    UNION ALL SELECT oid::regoperator::text, obj_description(oid, 'pg_operator') FROM pg_operator WHERE oprnamespace = ANY ('{fieldcrypt,fieldcrypt_internal}'::regnamespace[])
    UNION ALL SELECT nspname, obj_description(oid, 'pg_namespace') FROM pg_namespace WHERE nspname IN ('fieldcrypt', 'fieldcrypt_internal')
    UNION ALL SELECT extname, obj_description(oid, 'pg_extension') FROM pg_extension WHERE extname = 'pg_fieldcrypt'
    UNION ALL SELECT evtname, obj_description(oid, 'pg_event_trigger') FROM pg_event_trigger
) AS x (name, comment) WHERE coalesce(x.comment, '') = ''
SQL
	# Those of a partition are the table's.
	'every column of every table and view says what it is' => <<'SQL',
SELECT format('%s.%I', c.oid::regclass, a.attname) AS name FROM pg_class AS c JOIN pg_attribute AS a ON a.attrelid = c.oid
 WHERE relnamespace = ANY ('{fieldcrypt,fieldcrypt_internal}'::regnamespace[]) AND relkind NOT IN ('i', 'I', 'S') AND NOT relispartition AND attnum > 0 AND NOT attisdropped
   AND coalesce(col_description(c.oid, a.attnum), '') = ''
SQL
	'operators of usual names do nothing but refuse' => <<'SQL',
SELECT oid::regoperator FROM pg_operator WHERE (oprleft = 'fieldcrypt.encrypted'::regtype OR oprright = 'fieldcrypt.encrypted'::regtype)
   AND oprname NOT IN ('*=', '*<>', '*<', '*<=', '*>=', '*>') AND oprcode::text NOT LIKE 'fieldcrypt_internal.refuse_%'
SQL
	'none of them is polymorphic, of (encrypted, encrypted), or in an index\'s family' => <<'SQL',
SELECT oid::regoperator FROM pg_operator AS o WHERE oprcode::text LIKE 'fieldcrypt_internal.refuse_%'
   AND (EXISTS (SELECT FROM pg_type AS t WHERE t.oid IN (oprleft, oprright) AND t.typtype = 'p') OR oprleft = oprright OR EXISTS (SELECT FROM pg_amop AS a WHERE a.amopopr = o.oid))
SQL
	'what refuses says so to the planner' => <<'SQL',
SELECT oid::regprocedure FROM pg_proc WHERE pronamespace = 'fieldcrypt_internal'::regnamespace AND prosrc ~ '^fieldcrypt_refuse_(comparison|match|member|element|order|text|name)' AND prosupport = 0
SQL
	'the type sorts and hashes by its bytes' => <<'SQL',
SELECT oid::text FROM pg_amop WHERE amoplefttype = 'fieldcrypt.encrypted'::regtype AND amopopr::regoperator::text NOT LIKE 'fieldcrypt.*%'
SQL
	'the casts of encrypted are explicit, refuse, or are of the same bytes' => <<'SQL',
SELECT format('%s AS %s', castsource::regtype, casttarget::regtype) FROM pg_cast
 WHERE (castsource = 'fieldcrypt.encrypted'::regtype OR casttarget = 'fieldcrypt.encrypted'::regtype)
   AND castcontext <> 'e' AND castfunc::regproc::text NOT LIKE 'fieldcrypt_internal.refuse_%'
   AND (castsource::regtype::text, casttarget::regtype::text, castcontext, castmethod)
       NOT IN (('fieldcrypt.encrypted_text', 'fieldcrypt.encrypted', 'i', 'b'), ('fieldcrypt.encrypted', 'fieldcrypt.encrypted_text', 'a', 'b'))
SQL
	# An implicit cast to it would have it compared, joined and concatenated where nobody wrote its name.
	'what becomes encrypted_text is written to it, or is cast by name' => <<'SQL',
SELECT castsource::regtype FROM pg_cast WHERE casttarget = 'fieldcrypt.encrypted_text'::regtype
   AND (castcontext = 'i' OR castfunc <> 0 AND castfunc <> 'fieldcrypt_internal.encrypted_text_from'::regproc)
SQL
	'encrypted_text becomes encrypted and bytea, and nothing else without a refusal' => <<'SQL',
SELECT casttarget::regtype FROM pg_cast WHERE castsource = 'fieldcrypt.encrypted_text'::regtype
   AND NOT (casttarget = 'fieldcrypt.encrypted'::regtype OR casttarget = 'bytea'::regtype AND castcontext = 'e')
   AND castfunc::regproc::text NOT LIKE 'fieldcrypt_internal.refuse_%'
SQL
	'both types are stored uncompressed, out of line' => q{SELECT oid::regtype FROM pg_type WHERE oid IN ('fieldcrypt.encrypted'::regtype, 'fieldcrypt.encrypted_text'::regtype) AND typstorage <> 'e'},
	'encrypted_text has no operator, class or range of its own' => <<'SQL',
SELECT oid::regoperator::text FROM pg_operator WHERE 'fieldcrypt.encrypted_text'::regtype IN (oprleft, oprright)
UNION ALL SELECT opcname FROM pg_opclass WHERE opcintype = 'fieldcrypt.encrypted_text'::regtype
SQL
	# The sequence of the log is not: its start is above all ids that a restore brings.
	# How far a re-encryption is, and which table a name means, is a matter of this database; an approval is for this cluster, its
	# history is in the log.
	'every table and its data is in the dump' => <<'SQL',
SELECT oid::regclass FROM pg_class WHERE relnamespace = ANY ('{fieldcrypt,fieldcrypt_internal}'::regnamespace[]) AND relkind = 'r'
   AND relname NOT IN ('alerts', 'approvals', 'reencryptions', 'reencryption_chunks', 'reencryption_failures', 'reencryption_runs', 'column_migrations', 'migration_marks', 'master_key_rotation', 'value_failures', 'value_verifications')
   AND oid <> ALL ((SELECT extconfig FROM pg_extension WHERE extname = 'pg_fieldcrypt')::oid[])
SQL
	'drops are guarded in every session' => <<'SQL',
SELECT 'the event trigger' WHERE NOT EXISTS (SELECT FROM pg_event_trigger WHERE evtname = 'fieldcrypt_guard_drops' AND evtenabled = 'A' AND evtevent = 'ddl_command_start')
SQL
	# Working state is changed all the time.
	'every table refuses UPDATE, DELETE and TRUNCATE' => <<'SQL',
SELECT c.oid::regclass, t.kind FROM pg_class AS c, (VALUES ('UPDATE', 16), ('DELETE', 8), ('TRUNCATE', 32)) AS t (kind, bit)
 WHERE relnamespace = ANY ('{fieldcrypt,fieldcrypt_internal}'::regnamespace[]) AND relkind IN ('r', 'p')
   AND NOT (relname ~ '^(reencryption|value_|column_migrations$|migration_marks$|master_key_rotation$)' AND t.kind <> 'TRUNCATE')
   AND NOT EXISTS (SELECT FROM pg_trigger WHERE tgrelid = c.oid AND tgfoid = 'fieldcrypt_internal.refuse_change'::regproc AND tgtype & t.bit <> 0 AND tgtype & 2 <> 0 AND tgenabled IN ('O', 'A'))
SQL
	'row level security is off, which pg_dump would stumble over' => q{SELECT oid::regclass FROM pg_class WHERE relnamespace = ANY ('{fieldcrypt,fieldcrypt_internal}'::regnamespace[]) AND (relrowsecurity OR relforcerowsecurity)},
	'encryption_keys tells of every change, also of replicated ones' => <<'SQL');
SELECT 'UPDATE and DELETE' WHERE NOT EXISTS (SELECT FROM pg_trigger WHERE tgrelid = 'fieldcrypt.encryption_keys'::regclass AND tgname = 'invalidate' AND tgenabled = 'A')
UNION ALL SELECT 'TRUNCATE' WHERE NOT EXISTS (SELECT FROM pg_trigger WHERE tgrelid = 'fieldcrypt.encryption_keys'::regclass AND tgname = 'invalidate_all' AND tgenabled = 'A')
SQL

is(value($node, $rules{$_}), '', $_) foreach sort keys %rules;

# The rules can fail: a function that breaks them is found, and so is a table.
value($node, <<'SQL');
CREATE TABLE fieldcrypt.badly_told (said int, not_said int);
COMMENT ON COLUMN fieldcrypt.badly_told.said IS 'something';
CREATE VIEW fieldcrypt.badly_shown AS SELECT said FROM fieldcrypt.badly_told;
CREATE TYPE fieldcrypt.badly_kind AS ENUM ('one');
CREATE FUNCTION fieldcrypt.try_decrypt_badly(context text) RETURNS text LANGUAGE sql IMMUTABLE STRICT LEAKPROOF SECURITY DEFINER AS 'SELECT $1';
SQL
foreach my $rule (
	'every object of the schemas belongs to the extension', 'nobody but the owner has any right, PUBLIC least of all',
	'what runs with the owner\'s rights has a search_path', 'what decrypts is never immutable, never leakproof',
	'what takes a context or tenant is not STRICT')
{
	like(value($node, $rules{$rule}), qr/try_decrypt_badly/, "a breach is found: $rule");
}
my %untold = (
	'every object says what it is' => [ 'badly_kind', 'badly_shown', 'badly_told', 'try_decrypt_badly(text)' ],
	'every column of every table and view says what it is' => [ 'badly_shown.said', 'badly_told.not_said' ]);
is(value($node, qq{SELECT x.name FROM ($rules{$_}) AS x ORDER BY x.name COLLATE "C"}), join("\n", map { "fieldcrypt.$_" } @{ $untold{$_} }), "each breach is found: $_") foreach sort keys %untold;
value($node, 'DROP FUNCTION fieldcrypt.try_decrypt_badly; DROP VIEW fieldcrypt.badly_shown; DROP TABLE fieldcrypt.badly_told; DROP TYPE fieldcrypt.badly_kind');

# A refusal of each object of a privilege is recorded: events/refusals.rs knows all their names. (With a constant
# NULL a STRICT function would not be called at all.)
value($node, <<'SQL');
CREATE ROLE nosy LOGIN;
CREATE ROLE nobody LOGIN;
GRANT USAGE ON SCHEMA fieldcrypt, fieldcrypt_internal TO nosy;
SQL
my @attempts = split /\n/, value($node, <<'SQL');
SELECT DISTINCT split_part(o.name, '.', 2) || '|' || CASE
           WHEN o.kind = 'TABLE' THEN 'SELECT FROM ' || o.name
           ELSE format('%s %s(%s)', CASE o.kind WHEN 'PROCEDURE' THEN 'CALL' ELSE 'SELECT' END, o.name,
                    (SELECT string_agg(format(CASE o.kind WHEN 'PROCEDURE' THEN 'NULL::%s' ELSE '(SELECT NULL::%s)' END, replace(t, 'anyelement', 'text')), ', ') FROM regexp_split_to_table(o.arguments, ', ') AS t WHERE t <> '')) END
  FROM unnest('{encrypt,decrypt,reencrypt,manage,audit,backup,value}'::text[]) AS p(name),
       fieldcrypt_internal.privilege_objects(p.name) AS l,
       LATERAL (SELECT split_part(l.object, ' ', 1), substring(l.object FROM '^\w+ ([\w.]+)'), coalesce(substring(l.object FROM '\((.*)\)$'), '')) AS o(kind, name, arguments)
 WHERE o.kind NOT IN ('SCHEMA', 'TYPE') AND o.name !~ 'audit_log_'
UNION SELECT 'grant_access|SELECT fieldcrypt.grant_access(''nosy'', ''decrypt'')'
UNION SELECT 'revoke_access|SELECT fieldcrypt.revoke_access(''nosy'', ''decrypt'')'
UNION SELECT 'change_access|SELECT fieldcrypt_internal.change_access(''nosy'', ''{decrypt}'', true)'
UNION SELECT 'record_event|SELECT fieldcrypt_internal.record_event(''key_created'', NULL, NULL, NULL, NULL)'
SQL
cmp_ok(scalar @attempts, '>', 100, 'there are objects to be refused');
my %attempt = map { split /\|/, $_, 2 } @attempts;
my $refused = run_sql($node, join('', map { "$attempt{$_};\n" } sort keys %attempt), user => 'nosy');
is(scalar(grep { $_ eq '42501' } @{ $refused->{sqlstates} }), scalar(keys %attempt), 'each is refused') or diag $refused->{err};
refused($node, "SELECT $_()", '42501', qr/permission denied for schema/, "$_: refused for the schema", user => 'nobody') foreach 'fieldcrypt.export_keys', 'fieldcrypt_internal.count_active_tenants';
my $unrecorded = sub {
	my $text = value($node, q{SELECT DISTINCT reason FROM fieldcrypt.audit_log WHERE event = 'call_refused' AND actor IN ('nosy', 'nobody')});
	my %recorded = map { s/^permission denied for \w+ //r => 1 } split /\n/, $text;
	return join ' ', grep { !$recorded{$_} } 'fieldcrypt', 'fieldcrypt_internal', sort keys %attempt;
};
foreach (1 .. 100)
{
	last if $unrecorded->() eq '';
	Time::HiRes::sleep(0.1);
}
is($unrecorded->(), '', 'and recorded');

# A schema that somebody prepared is not taken over.
value($node, 'CREATE DATABASE prepared');
foreach my $schema ('fieldcrypt_internal', 'fieldcrypt')
{
	value($node, "CREATE SCHEMA $schema", db => 'prepared');
	refused($node, 'CREATE EXTENSION pg_fieldcrypt', '42P06', "a schema $schema that is there already is refused", db => 'prepared');
	value($node, "DROP SCHEMA $schema", db => 'prepared');
}
value($node, 'CREATE ROLE owner LOGIN; CREATE DATABASE owned OWNER owner');
refused($node, 'CREATE EXTENSION pg_fieldcrypt', '42501', 'a database owner who is no superuser can\'t create the extension', db => 'owned', user => 'owner');
value($node, 'CREATE EXTENSION pg_fieldcrypt', db => 'prepared');
refused($node, 'ALTER EXTENSION pg_fieldcrypt SET SCHEMA public', '0A000', 'the extension does not move');
value($node, 'CREATE TABLE holds (value fieldcrypt.encrypted)');
refused($node, 'DROP EXTENSION pg_fieldcrypt', '2BP01', 'it is not dropped while a column uses its type');
refused($node, "DROP TABLE $_", '2BP01', "$_ is not dropped") foreach qw(fieldcrypt.encryption_keys fieldcrypt.master_keys fieldcrypt.audit_log fieldcrypt_internal.audit_log_2026);

$node->stop;
done_testing();
