// Drizzle over node-pg: ordinary tables in the schema, their name is the view's. (pgView of Drizzle only reads.)
import { asc, count, eq, gte } from "drizzle-orm";
import { drizzle } from "drizzle-orm/node-postgres";
import { bigint, date, jsonb, pgTable, text, timestamp } from "drizzle-orm/pg-core";
import pg from "pg";

const fields = { name: text().notNull(), ssn: text(), born: date(), notes: jsonb() };
const patients = pgTable("decrypted_patients", {
  id: bigint({ mode: "number" }).primaryKey().generatedAlwaysAsIdentity(),
  ...fields,
  createdAt: timestamp("created_at", { withTimezone: true }).notNull().defaultNow(),
});
const cards = pgTable("decrypted_cards", { code: text().primaryKey(), ...fields }); // to read
const cardTable = pgTable("cards", { code: text().primaryKey(), ...fields }); // to upsert: ON CONFLICT wants a table

const people = [
  { name: "Ada", ssn: "078-05-1120", born: "1815-12-10", notes: { visits: 3, allergies: ["nuts", "Pfefferminzöl"] } },
  { name: "Grace", ssn: "219-09-9999", born: "1906-12-09", notes: { visits: 0, allergies: [] } },
  { name: "Edsger", ssn: "457-55-5462", born: "1930-05-11", notes: { visits: 1, allergies: [] } },
];
const two = (n) => String(n).padStart(2, "0");
const bulk = Array.from({ length: 50 }, (_, i) => i + 1).map((n) => ({
  name: `Patient ${two(n)}`, ssn: `100-00-00${two(n)}`, born: `${1950 + n}-01-01`, notes: { visits: n, allergies: [] },
}));

const pool = new pg.Pool(); // reads PGHOST and its like
const db = drizzle(pool);
const patient = async (id) => (await db.select().from(patients).where(eq(patients.id, id)))[0];
const short = (p) => `${p.name} ${p.ssn ?? "none"} ${p.born}`;
const medical = (p) => `visit ${p.notes.visits + 1}, allergies ${p.notes.allergies.join(" and ")}`;

const ids = (await db.insert(patients).values(people).returning({ id: patients.id })).map((row) => row.id);
const [ada, grace] = ids;
console.log("inserted:", ...ids);
let p = await patient(ada);
const today = Date.now() - p.createdAt < 86_400_000;
console.log(`read: ${short(p)}, ${medical(p)}, created ${today ? "today" : `at ${p.createdAt}`}`);

await db.update(patients).set({ ssn: "078-05-1121" }).where(eq(patients.id, ada));
console.log("one field:", short(await patient(ada)));
await db.update(patients).set({ name: "Ada Lovelace" }).where(eq(patients.id, ada));
console.log("another column:", short(await patient(ada)));
[p] = await db.update(patients).set({ ssn: null }).where(eq(patients.id, ada)).returning();
console.log("NULL:", short(p));
const deleted = (await db.delete(patients).where(eq(patients.id, grace))).rowCount;
console.log(`deleted: ${deleted}, left: ${await db.$count(patients)}`);

await db.insert(patients).values(bulk);
console.log("bulk:", await db.$count(patients));
const names = await db.select({ name: patients.name }).from(patients).orderBy(asc(patients.name)).limit(3);
console.log("by name:", names.map((row) => row.name).join(", "));
await db.transaction(async (tx) => {
  await tx.update(patients).set({ ssn: "000-00-0000" }).where(eq(patients.id, ada));
  await tx.insert(patients).values(people[1]);
  tx.rollback(); // throws
}).catch((error) => { if (error.name !== "TransactionRollbackError" && error.message !== "Rollback") throw error; });
console.log(`rolled back: ${await db.$count(patients)}, ${short(await patient(ada))}`);

const page = await db.select().from(patients).orderBy(asc(patients.name)).limit(10).offset(20);
console.log(`page: ${page[0].name} ${page[0].ssn} to ${page.at(-1).name} ${page.at(-1).ssn}`);
const [found] = await db.select().from(patients).where(eq(patients.ssn, "100-00-0007"));
const [since] = await db.select({ n: count() }).from(patients).where(gte(patients.born, "1990-01-01"));
console.log(`by an encrypted field: ${found.name}, born from 1990 on: ${since.n}`);

for (const [title, ssn, visits] of [["upsert", "300-00-0001", 0], ["upsert again", "300-00-0002", 1]]) {
  const set = { name: "Barbara", ssn, born: "1928-11-07", notes: { visits, allergies: ["dust"] } };
  await db.insert(cardTable).values({ code: "b", ...set }).onConflictDoUpdate({ target: cardTable.code, set });
  [p] = await db.select().from(cards).where(eq(cards.code, "b"));
  console.log(`${title}: ${short(p)}, ${medical(p)}`);
}
await pool.end();
