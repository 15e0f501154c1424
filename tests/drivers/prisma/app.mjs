// Prisma 7 over its adapter for node-pg; the models are in schema.prisma, their tables are the views.
import { PrismaPg } from "@prisma/adapter-pg";
import { PrismaClient } from "@prisma/client";

const date = (text) => new Date(text); // Prisma has a date as one at midnight, UTC
const people = [
  { name: "Ada", ssn: "078-05-1120", born: date("1815-12-10"), notes: { visits: 3, allergies: ["nuts", "Pfefferminzöl"] } },
  { name: "Grace", ssn: "219-09-9999", born: date("1906-12-09"), notes: { visits: 0, allergies: [] } },
  { name: "Edsger", ssn: "457-55-5462", born: date("1930-05-11"), notes: { visits: 1, allergies: [] } },
];
const two = (n) => String(n).padStart(2, "0");
const bulk = Array.from({ length: 50 }, (_, i) => i + 1).map((n) => ({
  name: `Patient ${two(n)}`, ssn: `100-00-00${two(n)}`, born: date(`${1950 + n}-01-01`), notes: { visits: n, allergies: [] },
}));

const db = new PrismaClient({ adapter: new PrismaPg({}) }); // node-pg reads PGHOST and its like
const patients = db.patient;
const short = (p) => `${p.name} ${p.ssn ?? "none"} ${p.born.toISOString().slice(0, 10)}`;
const medical = (p) => `visit ${p.notes.visits + 1}, allergies ${p.notes.allergies.join(" and ")}`;

const ids = [];
for (const data of people) ids.push((await patients.create({ data })).id);
const [ada, grace] = ids.map((id) => ({ where: { id } }));
console.log("inserted:", ...ids.map(Number));
let p = await patients.findUniqueOrThrow(ada);
const today = Date.now() - p.createdAt < 86_400_000;
console.log(`read: ${short(p)}, ${medical(p)}, created ${today ? "today" : `at ${p.createdAt}`}`);

console.log("one field:", short(await patients.update({ ...ada, data: { ssn: "078-05-1121" } })));
await patients.update({ ...ada, data: { name: "Ada Lovelace" } });
console.log("another column:", short(await patients.findUnique(ada)));
await patients.update({ ...ada, data: { ssn: null } });
console.log("NULL:", short(await patients.findUnique(ada)));
const { count: deleted } = await patients.deleteMany(grace);
console.log(`deleted: ${deleted}, left: ${await patients.count()}`);

await patients.createMany({ data: bulk });
console.log("bulk:", await patients.count());
const names = await patients.findMany({ select: { name: true }, orderBy: { name: "asc" }, take: 3 });
console.log("by name:", names.map((row) => row.name).join(", "));
await db.$transaction(async (tx) => {
  await tx.patient.update({ ...ada, data: { ssn: "000-00-0000" } });
  await tx.patient.create({ data: people[1] });
  throw new Error("no");
}).catch((error) => { if (error.message !== "no") throw error; });
console.log(`rolled back: ${await patients.count()}, ${short(await patients.findUnique(ada))}`);

const page = await patients.findMany({ orderBy: { name: "asc" }, take: 10, skip: 20 });
console.log(`page: ${page[0].name} ${page[0].ssn} to ${page.at(-1).name} ${page.at(-1).ssn}`);
const found = await patients.findFirst({ where: { ssn: "100-00-0007" } });
const since = await patients.count({ where: { born: { gte: date("1990-01-01") } } });
console.log(`by an encrypted field: ${found.name}, born from 1990 on: ${since}`);

for (const [title, ssn, visits] of [["upsert", "300-00-0001", 0], ["upsert again", "300-00-0002", 1]]) {
  const update = { name: "Barbara", ssn, born: date("1928-11-07"), notes: { visits, allergies: ["dust"] } };
  // Without select, Prisma reads the whole row back, from the table, where it is encrypted.
  await db.cardTable.upsert({ where: { code: "b" }, create: { code: "b", ...update }, update, select: { code: true } });
  p = await db.card.findUnique({ where: { code: "b" } });
  console.log(`${title}: ${short(p)}, ${medical(p)}`);
}
await db.$disconnect();
