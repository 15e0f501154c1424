// JDBC, plain SQL. Run as a single file: java -cp postgresql.jar App.java
import java.sql.*;
import java.time.*;
import java.util.*;

public class App {
    record Patient(String name, String ssn, LocalDate born, int visits, String[] allergies, OffsetDateTime created) {
        String shown() {
            return name + " " + (ssn == null ? "none" : ssn) + " " + born;
        }

        String medical() {
            return "visit " + (visits + 1) + ", allergies " + String.join(" and ", allergies);
        }
    }

    static final String INSERT = "INSERT INTO decrypted_patients (name, ssn, born, notes) VALUES (?, ?, ?, ?)";
    static final String UPSERT = """
        INSERT INTO patients (name, ssn, born, notes, id) OVERRIDING SYSTEM VALUE VALUES (?, ?, ?, ?, ?)
        ON CONFLICT (id) DO UPDATE SET name = excluded.name, ssn = excluded.ssn, born = excluded.born, notes = excluded.notes""";
    static final String SELECT = """
        SELECT name, ssn, born, created_at, (notes ->> 'visits')::int AS visits,
               ARRAY(SELECT jsonb_array_elements_text(notes -> 'allergies')) AS allergies
          FROM decrypted_patients""";

    static Connection db;

    static PreparedStatement prepared(String sql, Object... values) throws SQLException {
        var statement = db.prepareStatement(sql);
        for (int i = 0; i < values.length; i++) statement.setObject(i + 1, values[i]);
        return statement;
    }

    static void person(PreparedStatement s, String name, String ssn, LocalDate born, String notes) throws SQLException {
        s.setString(1, name);
        s.setString(2, ssn);
        s.setObject(3, born);
        s.setObject(4, notes, Types.OTHER); // a String that is no varchar, as everywhere with jsonb
    }

    static long insert(String name, String ssn, LocalDate born, String notes) throws SQLException {
        try (var statement = db.prepareStatement(INSERT, new String[] {"id"})) {
            person(statement, name, ssn, born, notes);
            statement.executeUpdate();
            var keys = statement.getGeneratedKeys();
            keys.next();
            return keys.getLong(1);
        }
    }

    static List<Patient> select(String rest, Object... values) throws SQLException {
        try (var rows = prepared(SELECT + rest, values).executeQuery()) {
            var found = new ArrayList<Patient>();
            while (rows.next())
                found.add(new Patient(rows.getString("name"), rows.getString("ssn"), rows.getObject("born", LocalDate.class), rows.getInt("visits"),
                    (String[]) rows.getArray("allergies").getArray(), rows.getObject("created_at", OffsetDateTime.class)));
            return found;
        }
    }

    static Patient patient(long id) throws SQLException {
        return select(" WHERE id = ?", id).get(0);
    }

    static int update(String sql, Object... values) throws SQLException {
        try (var statement = prepared(sql, values)) {
            return statement.executeUpdate();
        }
    }

    static long count(String rest, Object... values) throws SQLException {
        try (var rows = prepared("SELECT count(*) FROM decrypted_patients" + rest, values).executeQuery()) {
            rows.next();
            return rows.getLong(1);
        }
    }

    public static void main(String[] arguments) throws SQLException {
        var env = System.getenv();
        db = DriverManager.getConnection("jdbc:postgresql://" + env.get("PGHOST") + ":" + env.get("PGPORT") + "/" + env.get("PGDATABASE"),
            env.get("PGUSER"), env.get("PGPASSWORD"));
        long ada = insert("Ada", "078-05-1120", LocalDate.of(1815, 12, 10), "{\"visits\": 3, \"allergies\": [\"nuts\", \"Pfefferminzöl\"]}");
        long grace = insert("Grace", "219-09-9999", LocalDate.of(1906, 12, 9), "{\"visits\": 0, \"allergies\": []}");
        long edsger = insert("Edsger", "457-55-5462", LocalDate.of(1930, 5, 11), "{\"visits\": 1, \"allergies\": []}");
        System.out.println("inserted: " + ada + " " + grace + " " + edsger);
        var p = patient(ada);
        boolean today = Duration.between(p.created, OffsetDateTime.now()).toHours() < 24;
        System.out.println("read: " + p.shown() + ", " + p.medical() + ", created " + (today ? "today" : "at " + p.created));

        update("UPDATE decrypted_patients SET ssn = ? WHERE id = ?", "078-05-1121", ada);
        System.out.println("one field: " + patient(ada).shown());
        update("UPDATE decrypted_patients SET name = ? WHERE id = ?", "Ada Lovelace", ada);
        System.out.println("another column: " + patient(ada).shown());
        update("UPDATE decrypted_patients SET ssn = ? WHERE id = ?", null, ada);
        System.out.println("NULL: " + patient(ada).shown());
        System.out.println("deleted: " + update("DELETE FROM decrypted_patients WHERE id = ?", grace) + ", left: " + count(""));

        try (var batch = db.prepareStatement(INSERT)) {
            for (int n = 1; n <= 50; n++) {
                person(batch, "Patient %02d".formatted(n), "100-00-%04d".formatted(n), LocalDate.of(1950 + n, 1, 1),
                    "{\"visits\": %d, \"allergies\": []}".formatted(n));
                batch.addBatch();
            }
            batch.executeBatch();
        }
        System.out.println("bulk: " + count(""));
        System.out.println("by name: " + String.join(", ", select(" ORDER BY name LIMIT 3").stream().map(Patient::name).toList()));
        db.setAutoCommit(false);
        update("UPDATE decrypted_patients SET ssn = ? WHERE id = ?", "000-00-0000", ada);
        insert("Grace", "219-09-9999", LocalDate.of(1906, 12, 9), "{}");
        db.rollback();
        db.setAutoCommit(true);
        System.out.println("rolled back: " + count("") + ", " + patient(ada).shown());

        var page = select(" ORDER BY name LIMIT ? OFFSET ?", 10, 20);
        var last = page.get(page.size() - 1);
        System.out.println("page: " + page.get(0).name + " " + page.get(0).ssn + " to " + last.name + " " + last.ssn);
        System.out.println("by an encrypted field: " + select(" WHERE ssn = ?", "100-00-0007").get(0).name
            + ", born from 1990 on: " + count(" WHERE born >= ?", LocalDate.of(1990, 1, 1)));

        for (int visits = 0; visits < 2; visits++) {
            try (var statement = db.prepareStatement(UPSERT)) {
                person(statement, "Barbara", "300-00-000" + (visits + 1), LocalDate.of(1928, 11, 7),
                    "{\"visits\": %d, \"allergies\": [\"dust\"]}".formatted(visits));
                statement.setLong(5, 1000);
                statement.executeUpdate();
            }
            p = patient(1000);
            System.out.println((visits == 0 ? "upsert: " : "upsert again: ") + p.shown() + ", " + p.medical());
        }
    }
}
