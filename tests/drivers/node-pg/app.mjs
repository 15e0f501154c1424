// node-pg, plain SQL. The connection comes from PGHOST and its like.
import pg from "pg";

const people = [
  ["Ada", "078-05-1120", "1815-12-10", { visits: 3, allergies: ["nuts", "Pfefferminzöl"] }],
  ["Grace", "219-09-9999", "1906-12-09", { visits: 0, allergies: [] }],
  ["Edsger", "457-55-5462", "1930-05-11", { visits: 1, allergies: [] }],
];
const two = (n) => String(n).padStart(2, "0");
const bulk = Array.from({ length: 50 }, (_, i) => i + 1).map((n) => [
  `Patient ${two(n)}`, `100-00-00${two(n)}`, `${1950 + n}-01-01`, { visits: n, allergies: [] },
]);

const insert = "INSERT INTO decrypted_patients (name, ssn, born, notes) VALUES ($1, $2, $3, $4)";
const upsert = `
  INSERT INTO patients (id, name, ssn, born, notes) OVERRIDING SYSTEM VALUE VALUES ($1, $2, $3, $4, $5)
  ON CONFLICT (id) DO UPDATE SET name = excluded.name, ssn = excluded.ssn, born = excluded.born, notes = excluded.notes`;

const db = new pg.Client();
await db.connect();
const all = async (sql, ...values) => (await db.query(sql, values)).rows;
const one = async (sql, ...values) => (await all(sql, ...values))[0];
const patient = (id) => one("SELECT * FROM decrypted_patients WHERE id = $1", id);
const count = async () => (await one("SELECT count(*)::int FROM decrypted_patients")).count;
// A date is one at midnight here.
const day = (d) => `${d.getFullYear()}-${two(d.getMonth() + 1)}-${two(d.getDate())}`;
const short = (p) => `${p.name} ${p.ssn ?? "none"} ${day(p.born)}`;
const medical = (p) => `visit ${p.notes.visits + 1}, allergies ${p.notes.allergies.join(" and ")}`;

const ids = [];
for (const person of people) ids.push((await one(`${insert} RETURNING id`, ...person)).id);
const [ada, grace] = ids;
console.log("inserted:", ...ids.map(Number));
let p = await patient(ada);
const today = Date.now() - p.created_at < 86_400_000;
console.log(`read: ${short(p)}, ${medical(p)}, created ${today ? "today" : `at ${p.created_at}`}`);

await db.query("UPDATE decrypted_patients SET ssn = $1 WHERE id = $2", ["078-05-1121", ada]);
console.log("one field:", short(await patient(ada)));
await db.query("UPDATE decrypted_patients SET name = $1 WHERE id = $2", ["Ada Lovelace", ada]);
console.log("another column:", short(await patient(ada)));
await db.query("UPDATE decrypted_patients SET ssn = $1 WHERE id = $2", [null, ada]);
console.log("NULL:", short(await patient(ada)));
const deleted = (await db.query("DELETE FROM decrypted_patients WHERE id = $1", [grace])).rowCount;
console.log(`deleted: ${deleted}, left: ${await count()}`);

const rows = bulk.map((_, i) => `($${4 * i + 1}, $${4 * i + 2}, $${4 * i + 3}, $${4 * i + 4})`).join();
await db.query(`INSERT INTO decrypted_patients (name, ssn, born, notes) VALUES ${rows}`, bulk.flat());
console.log("bulk:", await count());
const names = await all("SELECT name FROM decrypted_patients ORDER BY name LIMIT 3");
console.log("by name:", names.map((row) => row.name).join(", "));
await db.query("BEGIN");
await db.query("UPDATE decrypted_patients SET ssn = $1 WHERE id = $2", ["000-00-0000", ada]);
await db.query(insert, people[1]);
await db.query("ROLLBACK");
console.log(`rolled back: ${await count()}, ${short(await patient(ada))}`);

const page = await all("SELECT * FROM decrypted_patients ORDER BY name LIMIT $1 OFFSET $2", 10, 20);
console.log(`page: ${page[0].name} ${page[0].ssn} to ${page.at(-1).name} ${page.at(-1).ssn}`);
const found = (await one("SELECT name FROM decrypted_patients WHERE ssn = $1", "100-00-0007")).name;
const since = (await one("SELECT count(*)::int FROM decrypted_patients WHERE born >= $1", "1990-01-01")).count;
console.log(`by an encrypted field: ${found}, born from 1990 on: ${since}`);

for (const [title, ssn, visits] of [["upsert", "300-00-0001", 0], ["upsert again", "300-00-0002", 1]]) {
  await db.query(upsert, [1000, "Barbara", ssn, "1928-11-07", { visits, allergies: ["dust"] }]);
  p = await patient(1000);
  console.log(`${title}: ${short(p)}, ${medical(p)}`);
}
await db.end();
