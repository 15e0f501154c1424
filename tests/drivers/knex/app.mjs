// Knex: the name of the table is the view's.
import knex from "knex";

const people = [
  { name: "Ada", ssn: "078-05-1120", born: "1815-12-10", notes: { visits: 3, allergies: ["nuts", "Pfefferminzöl"] } },
  { name: "Grace", ssn: "219-09-9999", born: "1906-12-09", notes: { visits: 0, allergies: [] } },
  { name: "Edsger", ssn: "457-55-5462", born: "1930-05-11", notes: { visits: 1, allergies: [] } },
];
const two = (n) => String(n).padStart(2, "0");
const bulk = Array.from({ length: 50 }, (_, i) => i + 1).map((n) => ({
  name: `Patient ${two(n)}`, ssn: `100-00-00${two(n)}`, born: `${1950 + n}-01-01`, notes: { visits: n, allergies: [] },
}));

const db = knex({ client: "pg", connection: {} }); // node-pg reads PGHOST and its like
const patients = (on = db) => on("decrypted_patients");
const patient = (id) => patients().where({ id }).first();
const count = async () => Number((await patients().count())[0].count);
// A date is one at midnight here.
const day = (d) => `${d.getFullYear()}-${two(d.getMonth() + 1)}-${two(d.getDate())}`;
const short = (p) => `${p.name} ${p.ssn ?? "none"} ${day(p.born)}`;
const medical = (p) => `visit ${p.notes.visits + 1}, allergies ${p.notes.allergies.join(" and ")}`;

const ids = (await patients().insert(people).returning("id")).map((row) => row.id);
const [id, grace] = ids;
console.log("inserted:", ...ids.map(Number));
let p = await patient(id);
const today = Date.now() - p.created_at < 86_400_000;
console.log(`read: ${short(p)}, ${medical(p)}, created ${today ? "today" : `at ${p.created_at}`}`);

await patients().where({ id }).update({ ssn: "078-05-1121" });
console.log("one field:", short(await patient(id)));
await patients().where({ id }).update({ name: "Ada Lovelace" });
console.log("another column:", short(await patient(id)));
[p] = await patients().where({ id }).update({ ssn: null }).returning("*");
console.log("NULL:", short(p));
const deleted = await patients().where({ id: grace }).delete();
console.log(`deleted: ${deleted}, left: ${await count()}`);

await db.batchInsert("decrypted_patients", bulk, 20);
console.log("bulk:", await count());
console.log("by name:", (await patients().orderBy("name").limit(3).pluck("name")).join(", "));
const transaction = await db.transaction();
await patients(transaction).where({ id }).update({ ssn: "000-00-0000" });
await patients(transaction).insert(people[1]);
await transaction.rollback();
console.log(`rolled back: ${await count()}, ${short(await patient(id))}`);

const page = await patients().orderBy("name").limit(10).offset(20);
console.log(`page: ${page[0].name} ${page[0].ssn} to ${page.at(-1).name} ${page.at(-1).ssn}`);
const found = await patients().where({ ssn: "100-00-0007" }).first();
const since = Number((await patients().where("born", ">=", "1990-01-01").count())[0].count);
console.log(`by an encrypted field: ${found.name}, born from 1990 on: ${since}`);

// ON CONFLICT wants a table.
for (const [title, ssn, visits] of [["upsert", "300-00-0001", 0], ["upsert again", "300-00-0002", 1]]) {
  const card = { code: "b", name: "Barbara", ssn, born: "1928-11-07", notes: { visits, allergies: ["dust"] } };
  await db("cards").insert(card).onConflict("code").merge();
  p = await db("decrypted_cards").where({ code: "b" }).first();
  console.log(`${title}: ${short(p)}, ${medical(p)}`);
}
await db.destroy();
