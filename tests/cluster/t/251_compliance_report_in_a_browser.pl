# The compliance report in a real browser: text and charts are to be seen, on a screen, a telephone and paper; it asks for
# nothing, and nothing in it runs, whatever tenants, roles, tables and the database are called.

use strict;
use warnings;

use Browser;
use Encode ();
use FieldcryptTest;
use JSON::PP ();
use PostgreSQL::Test::Utils;
use Test::More;

my $script = q{<script>document.title='pwned'</script>};
my $picture = q{'"><img src=x onerror="document.title='pwned'"><svg onload="document.title='pwned'">};
my @hostile = (
	qq{">$script}, $picture, "]]> --> </style></title></svg></bdi></td></table>$script",
	qq{<link rel=stylesheet href=http://192.0.2.1/x.css><iframe src="http://192.0.2.1/"></iframe>},
	qq{<style>\@import 'http://192.0.2.1/y.css'; * { display: none }</style><base href="http://192.0.2.1/">},
	qq{<meta http-equiv=refresh content="0;url=http://192.0.2.1/">}, q{<a href="javascript:document.title='pwned'">x</a>},
	"\x{5D0}\x{5D1}\x{5D2} \x{E9}\x{1F600} \x{4E2D}\x{6587}");
my $turned = "abc\x{202E}fed\x{202C}\n\tline";
my $long = 'y' x 1000;

my $node = new_cluster('primary', conf => "shared_preload_libraries = 'pg_fieldcrypt'\n");
sub quoted { my ($text) = @_; return "'" . (Encode::encode('UTF-8', $text) =~ s/'/''/gr) . "'"; }
sub shown { my ($text) = @_; return JSON::PP->new->ascii->allow_nonref->encode($text); }

# A database whose name closes the title.
value($node, qq{CREATE DATABASE "</title>$script"});
my $db = '</title>' . $script;
sub in_db { my ($sql, @rest) = @_; return value($node, $sql, db => $db, @rest); }
in_db(<<SQL);
CREATE EXTENSION pg_fieldcrypt;
CREATE ROLE auditor LOGIN; CREATE ROLE "$script" LOGIN; CREATE ROLE reader LOGIN;
SELECT fieldcrypt.grant_access('auditor', 'audit'), fieldcrypt.grant_access('reader', 'decrypt'),
       fieldcrypt.grant_access(format('%I', @{[ quoted($script) ]})::regrole, 'decrypt', 'manage');
CREATE TABLE "$script" (id int PRIMARY KEY, "<b>value" fieldcrypt.encrypted);
INSERT INTO "$script" SELECT i, fieldcrypt.encrypt_field('v', tenant => 'tenant ' || i % 4) FROM generate_series(1, 100) AS i;
CREATE TABLE second AS SELECT i, fieldcrypt.encrypt_field('v', tenant => 'other') AS value FROM generate_series(1, 100) AS i;
SQL
in_db('SELECT fieldcrypt.create_key(' . quoted($_) . ')') foreach @hostile, 'renamed', $long;
rename_tenant($node, quoted('renamed'), quoted($turned), db => $db);
in_db("CALL fieldcrypt.rotate_keys('tenant 1', reason => " . quoted($picture) . ')');
in_db("CALL fieldcrypt.rotate_keys(" . quoted($hostile[0]) . ', reason => ' . quoted($hostile[2]) . ')');
in_db(q{SELECT fieldcrypt.mark_compromised((SELECT key_id FROM fieldcrypt.encryption_keys WHERE tenant = 'tenant 2'), '<u>why</u>')});
in_db('SET session_replication_role = replica; ' . <<'SQL');
UPDATE fieldcrypt.encryption_keys SET created_at = created_at - interval '120 days' WHERE tenant = 'tenant 3';
INSERT INTO fieldcrypt.audit_log (id, at, event, actor, role, tenant, value_count, error_code, backend_pid)
SELECT nextval('fieldcrypt_internal.audit_log_id_seq'), now() - d * interval '1 day', e.event, 'reader', 'reader', 'tenant 1', 10 + d % 9, e.code, 1
  FROM generate_series(0, 364, 2) AS d, (VALUES ('values_decrypted', NULL), ('decrypt_failed', 'KF002')) AS e(event, code);
SQL
in_db(<<SQL);
SET session_replication_role = replica;
INSERT INTO fieldcrypt.audit_log (id, at, event, actor, role, tenant, application, error_code, reason, backend_pid)
VALUES (nextval('fieldcrypt_internal.audit_log_id_seq'), now(), 'call_refused', @{[ join ', ', map { quoted($hostile[$_]) } 0 .. 3 ]}, '42501', @{[ quoted($hostile[4]) ]}, 1);
SQL

my $folder = PostgreSQL::Test::Utils::tempdir();
sub file
{
	my ($name, $content) = @_;
	open my $file, '>', "$folder/$name" or die $!;
	print $file $content;
	close $file or die $!;
	return "$folder/$name";
}
my $html = in_db('SELECT fieldcrypt.compliance_report_html()', user => 'auditor');
my $path = file('report.html', $html);
my $browser = Browser->new;
my $page = $browser->visit($path);
$page->size(1100, 900);

# Nothing ran, nothing was asked for.
my $title = "Compliance report: field encryption in </title>$script";
is($page->evaluate('document.title'), $title, 'the title is the title, the database its name');
is($page->evaluate('document.querySelectorAll("script, img, iframe, object, embed, base, form, input, audio, video, foreignObject, animate, set").length'), 0, 'no element that runs or fetches');
is($page->evaluate('[...document.querySelectorAll("*")].flatMap(e => [...e.attributes]).filter(a => /^on|^(xlink:href|srcdoc|action|formaction|src|background)$/i.test(a.name)).length'), 0, 'nor an attribute');
is($page->evaluate('[...document.querySelectorAll("[href]")].map(e => e.getAttribute("href")).filter(h => !/^(#[a-z_]+|data:,)$/.test(h)).join(" ")'), '', 'links lead within the page');
is($page->evaluate('document.querySelectorAll("style").length + " " + document.querySelectorAll("meta").length'), '1 4', 'the style sheet is ours alone');
is_deeply([ $page->requests ], [], 'no request');
is_deeply([ $page->messages ], [], 'no complaint, no dialog, no exception');
is($page->evaluate('[...document.querySelectorAll("nav a")].filter(a => !document.querySelector(a.getAttribute("href"))).length'), 0, 'each entry of the contents is there');

# The names, as they are.
my $cells = $page->evaluate('[...document.querySelectorAll("td bdi")].map(e => e.textContent)');
my %cells = map { ($_ => 1) } @$cells;
foreach my $name (grep { length $_ <= 80 } @hostile, $script)
{
	ok($cells{$name}, 'shown as a name: ' . shown($name));
}
ok($cells{'abc[U+202E]fed[U+202C][U+000A][U+0009]line'}, 'what turns text around is shown by its number');
ok($cells{ 'y' x 64 . ' [...] ' . 'y' x 16 . ' (1,000 characters)' }, 'a name of 1000 characters is shortened, and says so');

# Text and charts are to be seen.
my $seen = <<'JS';
(() => {
    const out = {};
    for (const svg of document.querySelectorAll('svg')) {
        const box = svg.getBoundingClientRect(), id = svg.closest('figure').id;
        const bars = [...svg.querySelectorAll('rect')].map(r => r.getBoundingClientRect());
        const drawn = bars.filter(b => b.width > 0.4 && b.height > 0.4 && b.left >= box.left - 1 && b.right <= box.right + 1 && b.top >= box.top - 1 && b.bottom <= box.bottom + 1);
        const words = [...svg.querySelectorAll('text')].map(t => t.getBoundingClientRect());
        out[id] = { width: box.width, height: box.height, bars: bars.length, drawn: drawn.length,
            words: words.length, words_seen: words.filter(b => b.width > 0 && b.height > 0 && b.left >= box.left - 2 && b.right <= box.right + 2 && b.bottom <= box.bottom + 2).length,
            overlap: words.some((a, i) => words.some((b, j) => i < j && a.left < b.right - 1 && b.left < a.right - 1 && a.top < b.bottom - 1 && b.top < a.bottom - 1)),
            title: svg.querySelector(':scope > title').textContent, desc: svg.querySelector(':scope > desc').textContent, role: svg.getAttribute('role'),
            labelled: svg.getAttribute('aria-labelledby').split(' ').every(id => svg.querySelector('#' + id)) };
    }
    return out;
})()
JS
my %least = ('key-states' => 4, 'key-ages' => 2, 'rotations' => 1, 'coverage' => 4, 'decrypts' => 180, 'failures' => 180);
foreach my $size ([ 1100, 900, 'screen' ], [ 390, 844, 'telephone', mobile => 1 ], [ 718, 1000, 'print' ])
{
	my ($width, $height, $medium, @options) = @$size;
	$page->size($width, $height, @options);
	$page->medium($medium eq 'print' ? 'print' : 'screen');
	my $charts = $page->evaluate($seen);
	is_deeply([ sort keys %$charts ], [ sort keys %least ], "$medium: the charts");
	foreach my $id (sort keys %least)
	{
		my $chart = $charts->{$id};
		cmp_ok($chart->{width}, '>', 300, "$medium, $id: its width");
		cmp_ok($chart->{height}, '>', 20, "$medium, $id: its height");
		cmp_ok($chart->{bars}, '>=', $least{$id}, "$medium, $id: its bars");
		is($chart->{drawn}, $chart->{bars}, "$medium, $id: each is to be seen");
		cmp_ok($chart->{words}, '>', 1, "$medium, $id: words");
		is($chart->{words_seen}, $chart->{words}, "$medium, $id: each is within");
		ok(!$chart->{overlap}, "$medium, $id: none upon another");
		ok($chart->{title} && $chart->{desc} =~ /\d/ && $chart->{role} eq 'img' && $chart->{labelled}, "$medium, $id: it is told in words, too");
	}
	cmp_ok($page->evaluate('document.documentElement.scrollWidth'), '<=', $width, "$medium: the page is no wider than that");
	is($page->evaluate('[...document.querySelectorAll("h1, h2, caption, dt, dd, td, th, p, li, figcaption, .tile-value")].filter(e => { const b = e.getBoundingClientRect(); return e.textContent.trim() && !(b.width > 0 && b.height > 0); }).length'),
		0, "$medium: all text takes room");
}
$page->medium('screen');
$page->size(1100, 900);
is($page->evaluate('[...document.querySelectorAll("table")].filter(t => !t.caption || !t.caption.textContent.trim() || [...t.querySelectorAll("th")].some(h => h.scope !== "col")).length'), 0, 'tables have captions, and headings a scope');
is($page->evaluate('document.documentElement.lang + " " + document.querySelectorAll("h1").length + " " + document.querySelectorAll("main, header, footer, nav").length'), 'en 1 4', 'language and landmarks');
is($page->evaluate('new Set([...document.querySelectorAll("[id]")].map(e => e.id)).size - document.querySelectorAll("[id]").length'), 0, 'no id twice');
like($page->evaluate('document.body.innerText'), qr/$_/, "the text has: $_") foreach 'HIPAA .164\.312\(b\)', 'PCI DSS v4 3\.7\.4', 'GDPR Art\. 32\(1\)\(a\)', 'XAES-256-GCM', 'What this report does not show', 'superuser';

# Contrast of each text to what is behind it, as WCAG 2 computes it.
my $pale = $page->evaluate(<<'JS');
(() => {
    const rgb = c => (c.match(/[\d.]+/g) || []).map(Number);
    const light = c => { const [r, g, b] = c.map(v => { v /= 255; return v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; }); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
    const behind = e => { for (; e; e = e.parentElement) { const c = rgb(getComputedStyle(e).backgroundColor); if (c.length === 3 || c[3] > 0) return c.slice(0, 3); } return [255, 255, 255]; };
    const pale = new Set();
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) {
        const e = walker.currentNode.parentElement;
        if (!walker.currentNode.textContent.trim() || e.closest('svg title, svg desc, rect')) continue;
        const style = getComputedStyle(e), front = light(rgb(e.closest('svg') ? style.fill : style.color).slice(0, 3)), back = light(behind(e));
        const ratio = (Math.max(front, back) + 0.05) / (Math.min(front, back) + 0.05);
        if (ratio < 4.5) pale.add(e.tagName + '.' + e.className + ' ' + ratio.toFixed(2));
    }
    return [...pale];
})()
JS
is_deeply($pale, [], 'contrast of all text is 4.5 to 1 or more');

# On paper, and as a picture.
my $pdf = slurp_file($page->pdf("$folder/report.pdf"));
like($pdf, qr/\A%PDF/, 'it prints');
my $sheets = () = $pdf =~ m{/Type /Page\b}g;
cmp_ok($sheets, '>', 3, 'on some pages');
cmp_ok($sheets, '<', 40, 'not on too many');
cmp_ok(-s $page->screenshot("$folder/report.png"), '>', 50_000, 'a picture of it is not empty');
is_deeply([ $page->requests ], [], 'printing asks for nothing');

# The same names as markup: this browser would have shown what happens, and the page's policy forbids it.
my $markup = join "\n", map { Encode::encode('UTF-8', $_) } @hostile[ 0 .. 4, 6 ];
my ($head) = $html =~ /(<meta http-equiv="Content-Security-Policy"[^>]*>)/;
my $strict = $browser->visit(file('policy.html', "<!DOCTYPE html>$head<title>control</title>$markup"));
is($strict->evaluate('document.title'), 'control', 'with the policy of the page even markup would not run');
cmp_ok(scalar(grep { /Content Security Policy/ } $strict->messages), '>', 3, 'the browser says that it forbids it');
$browser->hear(0.2) foreach 1 .. 5;
is_deeply([ $browser->connections ], [], 'nothing has left the browser in all of this');
my $open_page = $browser->visit(file('control.html', "<!DOCTYPE html><title>control</title>$markup"), wait => 0);
ok(poll(sub { $open_page->evaluate('document.title') eq 'pwned' }), 'a control: without it such a name runs');
ok(poll(sub { grep { m{^http://192\.0\.2\.1/} } $open_page->requests }), 'and requests are seen');
ok(poll(sub { grep { m{192\.0\.2\.1} } $browser->connections }), 'and leave the browser');

sub poll
{
	my ($wanted) = @_;
	foreach (1 .. 100)
	{
		return 1 if $wanted->();
		select undef, undef, undef, 0.1;
	}
	return 0;
}

# Nothing at all in the database: the page says so, and is still a page.
create_database($node, 'bare');
my $bare = $browser->visit(file('bare.html', value($node, 'SELECT fieldcrypt.compliance_report_html()', db => 'bare')));
like($bare->evaluate('document.body.innerText'), qr/There are no active keys\..*No rotation in this period\..*No column of type fieldcrypt\.encrypted\./s, 'an empty database: the charts say that there is nothing');
is($bare->evaluate('document.querySelectorAll("svg").length'), 6, 'an empty database: all charts');

$browser->quit;
no_crash($node);
$node->stop;
done_testing();
