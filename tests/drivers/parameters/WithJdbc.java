// Parameters of every type by JDBC, which declares the type of most: as text, in the binary format where the driver has one,
// and with stringtype=unspecified, by which a String has the column's type.
import java.math.BigDecimal;
import java.sql.*;
import java.time.*;
import java.util.*;
import org.postgresql.util.PGobject;

public class WithJdbc {
    interface Setter {
        void set(PreparedStatement s) throws SQLException;
    }

    static final Map<String, Setter> CASES = new LinkedHashMap<>();

    static Setter object(String type, String value) throws SQLException {
        var object = new PGobject();
        object.setType(type);
        object.setValue(value);
        return s -> s.setObject(1, object);
    }

    static void cases() throws SQLException {
        CASES.put("setShort", s -> s.setShort(1, (short) 7));
        CASES.put("setInt", s -> s.setInt(1, 7));
        CASES.put("setLong", s -> s.setLong(1, 7));
        CASES.put("setBigDecimal", s -> s.setBigDecimal(1, new BigDecimal("7.5")));
        CASES.put("setString", s -> s.setString(1, "seven"));
        CASES.put("a String as CHAR", s -> s.setObject(1, "seven", Types.CHAR));
        CASES.put("a String as OTHER", s -> s.setObject(1, "seven", Types.OTHER));
        CASES.put("a Character", s -> s.setObject(1, 's'));
        CASES.put("setBoolean", s -> s.setBoolean(1, true));
        CASES.put("setDate", s -> s.setDate(1, java.sql.Date.valueOf("1815-12-10")));
        CASES.put("a LocalDate", s -> s.setObject(1, LocalDate.of(1815, 12, 10)));
        CASES.put("setTimestamp", s -> s.setTimestamp(1, new Timestamp(0)));
        CASES.put("an OffsetDateTime", s -> s.setObject(1, OffsetDateTime.of(2026, 1, 2, 3, 4, 0, 0, ZoneOffset.UTC)));
        CASES.put("a LocalDateTime", s -> s.setObject(1, LocalDateTime.of(2026, 1, 2, 3, 4)));
        CASES.put("a LocalTime", s -> s.setObject(1, LocalTime.of(3, 4)));
        CASES.put("a UUID", s -> s.setObject(1, new UUID(0, 7)));
        CASES.put("PGobject text", object("text", "seven"));
        CASES.put("PGobject json", object("json", "{\"a\": 7}"));
        CASES.put("PGobject jsonb", object("jsonb", "{\"a\": 7}"));
        CASES.put("PGobject mood", object("mood", "calm"));
        CASES.put("PGobject interval", object("interval", "7 hours"));
        CASES.put("setBytes", s -> s.setBytes(1, new byte[] {7, 0}));
        CASES.put("setFloat", s -> s.setFloat(1, 7.5f));
        CASES.put("setDouble", s -> s.setDouble(1, 7.5));
        CASES.put("an array of int4", s -> s.setArray(1, s.getConnection().createArrayOf("int4", new Integer[] {7, 8})));
        CASES.put("an array of text", s -> s.setArray(1, s.getConnection().createArrayOf("text", new String[] {"seven"})));
        CASES.put("an int[]", s -> s.setObject(1, new int[] {7, 8}));
        CASES.put("null", s -> s.setObject(1, null));
        CASES.put("null as VARCHAR", s -> s.setNull(1, Types.VARCHAR));
        CASES.put("null as DATE", s -> s.setNull(1, Types.DATE));
        CASES.put("null as INTEGER", s -> s.setNull(1, Types.INTEGER));
        CASES.put("null as BINARY", s -> s.setNull(1, Types.BINARY));
        CASES.put("null as OTHER", s -> s.setNull(1, Types.OTHER));
    }

    static void send(String format, String options) throws SQLException {
        var env = System.getenv();
        var url = "jdbc:postgresql://" + env.get("PGHOST") + ":" + env.get("PGPORT") + "/" + env.get("PGDATABASE") + "?" + options;
        try (var db = DriverManager.getConnection(url, env.get("PGUSER"), env.get("PGPASSWORD"))) {
            for (var one : CASES.entrySet()) {
                var result = "stored";
                try (var statement = db.prepareStatement("INSERT INTO probe VALUES (?)")) {
                    one.getValue().set(statement);
                    statement.executeUpdate();
                } catch (SQLException error) {
                    result = error.getSQLState();
                }
                System.out.println("jdbc " + one.getKey() + " (" + format + "): " + result);
            }
        }
    }

    public static void main(String[] arguments) throws SQLException {
        cases();
        send("text", "binaryTransfer=false");
        // prepared at once, or the first executions would be text
        send("binary", "prepareThreshold=-1&binaryTransferEnable=INT2,INT4,INT8,FLOAT4,FLOAT8,NUMERIC,BOOL,DATE,TIME,TIMESTAMP,TIMESTAMPTZ,UUID");
        send("unspecified", "stringtype=unspecified");
    }
}
