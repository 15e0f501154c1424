// Parameters of every type by node-pg. It declares no type: without a cast a parameter has the column's. All but a Buffer is
// sent as text, a Buffer in the binary format.
import pg from "pg";

const plain = {
  "a number": 7, "a fraction": 7.5, "a bigint": 7n, "a string": "seven", "a boolean": true, "a Date": new Date(0),
  "a Buffer": Buffer.from("seven"), "a Buffer with a zero": Buffer.from([7, 0]), "an object": { a: 7 }, "an array": ["seven"],
  null: null, undefined: undefined,
};
const cast = {
  int2: 7, int4: 7, int8: 7n, numeric: "7.5", text: "seven", varchar: "seven", "varchar(9)": "seven", "char(9)": "seven",
  name: "seven", '"char"': "s", bool: true, date: "1815-12-10", timestamptz: new Date(0), timestamp: new Date(0), time: "03:04",
  interval: "7 hours", uuid: "00000000-0000-0000-0000-000000000007", json: { a: 7 }, jsonb: { a: 7 }, bytea: Buffer.from("seven"),
  float4: 7.5, float8: 7.5, "int4[]": [7, 8], "text[]": ["seven"], mood: "calm", oid: 7, xml: "<a/>",
};

const db = new pg.Client();
await db.connect();
async function send(title, value, parameter) {
  let result = "stored";
  try {
    await db.query(`INSERT INTO probe VALUES (${parameter})`, [value]);
  } catch (error) {
    result = error.code ?? "refused by the driver";
  }
  console.log(`node-pg ${title}: ${result}`);
}
for (const [title, value] of Object.entries(plain)) await send(title, value, "$1");
for (const [title, value] of Object.entries(cast)) await send(`::${title}`, value, `$1::${title}`);
await db.end();
