// JPA, with EclipseLink, which Debian has: ordinary entities, their tables are the views.
import java.io.StringReader;
import java.sql.Timestamp;
import java.time.*;
import java.util.*;
import java.util.stream.Collectors;
import javax.json.*;
import javax.persistence.*;

public class App {
    @Converter
    public static class Json implements AttributeConverter<JsonObject, Object> {
        public Object convertToDatabaseColumn(JsonObject json) {
            return json == null ? null : json.toString();
        }

        // jsonb comes as an object of the driver's
        public JsonObject convertToEntityAttribute(Object text) {
            return text == null ? null : javax.json.Json.createReader(new StringReader(text.toString())).readObject();
        }
    }

    @MappedSuperclass
    public abstract static class Person {
        String name;
        String ssn;
        LocalDate born;
        @Convert(converter = Json.class) JsonObject notes;

        String shown() {
            return name + " " + (ssn == null ? "none" : ssn) + " " + born;
        }

        String medical() {
            var allergies = notes.getJsonArray("allergies").getValuesAs(JsonString.class).stream().map(JsonString::getString);
            return "visit " + (notes.getInt("visits") + 1) + ", allergies " + allergies.collect(Collectors.joining(" and "));
        }
    }

    @Entity(name = "Patient")
    @Table(name = "decrypted_patients")
    public static class Patient extends Person {
        @Id @GeneratedValue(strategy = GenerationType.IDENTITY) long id;
        @Column(name = "created_at", insertable = false, updatable = false) Timestamp created;

        static Patient of(String name, String ssn, LocalDate born, int visits, String... allergies) {
            var patient = new Patient();
            patient.name = name;
            patient.ssn = ssn;
            patient.born = born;
            patient.notes = notes(visits, allergies);
            return patient;
        }
    }

    @Entity(name = "Card")
    @Table(name = "decrypted_cards")
    public static class Card extends Person {
        @Id String code;
    }

    static JsonObject notes(int visits, String... allergies) {
        return javax.json.Json.createObjectBuilder().add("visits", visits).add("allergies", javax.json.Json.createArrayBuilder(List.of(allergies))).build();
    }

    static EntityManager db;

    static void transaction(Runnable work) {
        db.getTransaction().begin();
        work.run();
        db.getTransaction().commit();
        db.clear(); // so that what is printed is read again
    }

    static long count(String rest, Object... values) {
        var query = db.createQuery("SELECT count(p) FROM Patient p" + rest, Long.class);
        for (int i = 0; i < values.length; i++) query.setParameter(i + 1, values[i]);
        return query.getSingleResult();
    }

    public static void main(String[] arguments) {
        var env = System.getenv();
        // By stringtype a String goes into a column of jsonb.
        var url = "jdbc:postgresql://" + env.get("PGHOST") + ":" + env.get("PGPORT") + "/" + env.get("PGDATABASE") + "?stringtype=unspecified";
        db = Persistence.createEntityManagerFactory("clinic", Map.of("javax.persistence.jdbc.url", url, "javax.persistence.jdbc.user", env.get("PGUSER"),
            "javax.persistence.jdbc.password", env.get("PGPASSWORD"), "eclipselink.cache.shared.default", "false")).createEntityManager();
        var ada = Patient.of("Ada", "078-05-1120", LocalDate.of(1815, 12, 10), 3, "nuts", "Pfefferminzöl");
        var grace = Patient.of("Grace", "219-09-9999", LocalDate.of(1906, 12, 9), 0);
        var edsger = Patient.of("Edsger", "457-55-5462", LocalDate.of(1930, 5, 11), 1);
        for (var person : List.of(ada, grace, edsger)) transaction(() -> db.persist(person)); // in one, in any order
        System.out.println("inserted: " + ada.id + " " + grace.id + " " + edsger.id);
        var p = db.find(Patient.class, ada.id);
        boolean today = Duration.between(p.created.toInstant(), Instant.now()).toHours() < 24;
        System.out.println("read: " + p.shown() + ", " + p.medical() + ", created " + (today ? "today" : "at " + p.created));

        transaction(() -> db.find(Patient.class, ada.id).ssn = "078-05-1121");
        System.out.println("one field: " + db.find(Patient.class, ada.id).shown());
        transaction(() -> db.find(Patient.class, ada.id).name = "Ada Lovelace");
        System.out.println("another column: " + db.find(Patient.class, ada.id).shown());
        transaction(() -> db.find(Patient.class, ada.id).ssn = null);
        System.out.println("NULL: " + db.find(Patient.class, ada.id).shown());
        int[] deleted = {0};
        transaction(() -> deleted[0] = db.createQuery("DELETE FROM Patient p WHERE p.name = 'Grace'").executeUpdate());
        System.out.println("deleted: " + deleted[0] + ", left: " + count(""));

        transaction(() -> {
            for (int n = 1; n <= 50; n++) db.persist(Patient.of("Patient %02d".formatted(n), "100-00-%04d".formatted(n), LocalDate.of(1950 + n, 1, 1), n));
        });
        System.out.println("bulk: " + count(""));
        var names = db.createQuery("SELECT p.name FROM Patient p ORDER BY p.name", String.class).setMaxResults(3).getResultList();
        System.out.println("by name: " + String.join(", ", names));
        db.getTransaction().begin();
        db.find(Patient.class, ada.id).ssn = "000-00-0000";
        db.persist(Patient.of("Grace", "219-09-9999", LocalDate.of(1906, 12, 9), 0));
        db.flush();
        db.getTransaction().rollback();
        db.clear();
        System.out.println("rolled back: " + count("") + ", " + db.find(Patient.class, ada.id).shown());

        var page = db.createQuery("SELECT p FROM Patient p ORDER BY p.name", Patient.class).setFirstResult(20).setMaxResults(10).getResultList();
        var last = page.get(page.size() - 1);
        System.out.println("page: " + page.get(0).name + " " + page.get(0).ssn + " to " + last.name + " " + last.ssn);
        var found = db.createQuery("SELECT p FROM Patient p WHERE p.ssn = ?1", Patient.class).setParameter(1, "100-00-0007").getSingleResult();
        System.out.println("by an encrypted field: " + found.name + ", born from 1990 on: " + count(" WHERE p.born >= ?1", LocalDate.of(1990, 1, 1)));

        for (int visits = 0; visits < 2; visits++) {
            var upsert = db.createNativeQuery("INSERT INTO cards (code, name, ssn, born, notes) VALUES (?1, ?2, ?3, ?4, ?5) "
                    + "ON CONFLICT (code) DO UPDATE SET name = excluded.name, ssn = excluded.ssn, born = excluded.born, notes = excluded.notes")
                .setParameter(1, "b").setParameter(2, "Barbara").setParameter(3, "300-00-000" + (visits + 1))
                .setParameter(4, LocalDate.of(1928, 11, 7)).setParameter(5, notes(visits, "dust").toString());
            transaction(upsert::executeUpdate);
            var card = db.find(Card.class, "b");
            System.out.println((visits == 0 ? "upsert: " : "upsert again: ") + card.shown() + ", " + card.medical());
        }
    }
}
