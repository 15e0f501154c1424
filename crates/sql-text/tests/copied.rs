//! Where a COPY is, without its data.

use fieldcrypt_sql_text::messages::copy_place;

#[test]
fn what_follows_the_place_is_data() {
    for (text, place) in [
        ("COPY t, line 3, column ssn: \"123: 45\"", "COPY t, line 3, column ssn"),
        ("COPY t, line 3: \"1\t123-45-6789\nCOPY t, line 4\"", "COPY t, line 3"),
        ("COPY t, line 3, column ssn: null input", "COPY t, line 3, column ssn"),
        ("COPY t, line 3", "COPY t, line 3"),
        ("COPY t, ligne 3, colonne ssn : « 123 »", "COPY t, ligne 3, colonne ssn"),
        ("COPY t, Zeile 3, Spalte ssn: »123«", "COPY t, Zeile 3, Spalte ssn"),
        ("tのCOPY、行 3、列 ssn: \"123\"", "tのCOPY、行 3、列 ssn"),
        ("t 복사, 3번째 줄, ssn 열: \"123\"", "t 복사, 3번째 줄, ssn 열"),
        (": \"123\"", ""),
        ("", ""),
    ] {
        assert_eq!(copy_place(text.as_bytes()), place.as_bytes());
    }
}
