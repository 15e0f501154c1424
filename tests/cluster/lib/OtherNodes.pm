# Catalogs that look like Citus's, for what is asked of them; Citus itself is 276's. And what is due to be destroyed.
package OtherNodes;

use strict;
use warnings;

use Exporter 'import';
use FieldcryptTest;

our @EXPORT = qw(look_like_citus distribute make_due);

# Makes a database look like a node of Citus: group 0 is the coordinator. The cluster has allow_system_table_mods = on.
sub look_like_citus
{
	my ($node, $group, %options) = @_;
	value($node, <<"SQL", %options);
CREATE TABLE pg_catalog.pg_dist_partition (
    logicalrelid regclass PRIMARY KEY, partmethod "char" NOT NULL, partkey text, colocationid integer NOT NULL DEFAULT 0,
    repmodel "char" NOT NULL DEFAULT 's', autoconverted boolean NOT NULL DEFAULT false);
CREATE TABLE pg_catalog.pg_dist_local_group (groupid integer PRIMARY KEY);
INSERT INTO pg_catalog.pg_dist_local_group VALUES ($group);
GRANT SELECT ON pg_catalog.pg_dist_partition, pg_catalog.pg_dist_local_group TO PUBLIC;
SQL
	return;
}

sub distribute
{
	my ($node, $table, %options) = @_;
	value($node, "INSERT INTO pg_catalog.pg_dist_partition (logicalrelid, partmethod) VALUES ('$table', 'h')", %options);
	return;
}

# A scheduled key was scheduled ten days ago, and is due.
sub make_due
{
	my ($node, $key, %options) = @_;
	past_the_guard($node, <<"SQL", %options);
UPDATE fieldcrypt.encryption_keys
   SET destroy_scheduled_at = clock_timestamp() - interval '10 days', destroy_after = clock_timestamp() - interval '1 second'
 WHERE key_id = $key AND destroy_after IS NOT NULL
SQL
	return;
}

1;
