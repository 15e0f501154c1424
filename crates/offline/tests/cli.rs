//! The program, run on real files.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use fieldcrypt_envelope::bound::{self, overhead};
use fieldcrypt_envelope::ciphertext::{OVERHEAD, PLAINTEXT_OFFSET, seal_in_place, to_text};
use fieldcrypt_envelope::key_export::{Contents, SealedExport};
use fieldcrypt_envelope::{
    Binding, BlockScope, Context, DataKey, Domain, Form, Header, KeyId, KeyMetadata, MasterKey,
    Nonce, NonceBlock, Place, Purpose, Stamp, SystemEntropy,
};
use serde_json::Value;

const EXPORTS: &str = include_str!("../../../tests/vectors/key-exports.json");
/// Of the second vector.
const DEFAULT_2: i64 = i64::MAX;
const PRAXIS: i64 = 3;
const ACME: i64 = 4;
const DESTROYED: i64 = 5;
/// Added to it: keys of other purposes.
const LOOSE: i64 = 6;
const SEARCH: i64 = 7;

/// A folder with an export of the frozen vectors and its master keys.
struct Room {
    folder: PathBuf,
    vector: Value,
}

impl Room {
    fn new() -> Self {
        static SERIAL: AtomicU32 = AtomicU32::new(0);
        let name = format!("cli-{}-{}", std::process::id(), SERIAL.fetch_add(1, Ordering::Relaxed));
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        fs::create_dir(&folder).unwrap();
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o700)).unwrap();
        let vectors: Vec<Value> = serde_json::from_str(EXPORTS).unwrap();
        let room = Self { folder, vector: vectors[1].clone() };
        room.write("export.json", room.vector["document"].to_string());
        room.write("master.key", room.master_keys().join("\n"));
        for (number, key) in room.master_keys().iter().enumerate() {
            room.write(&format!("master.{number}"), key);
        }
        room
    }

    fn master_keys(&self) -> Vec<String> {
        let list = self.vector["meks"].as_array().unwrap();
        list.iter().map(|key| key.as_str().unwrap().to_owned()).collect()
    }

    fn path(&self, name: &str) -> String {
        self.folder.join(name).to_str().unwrap().to_owned()
    }

    fn write(&self, name: &str, content: impl AsRef<[u8]>) -> String {
        fs::write(self.folder.join(name), content).unwrap();
        fs::set_permissions(self.folder.join(name), fs::Permissions::from_mode(0o600)).unwrap();
        self.path(name)
    }

    /// A room whose export also has a key for loose values and one for search tags.
    fn with_keys_of_all_purposes() -> Self {
        let mut room = Self::new();
        let master_keys = room.loaded();
        let mut document = room.vector["document"].clone();
        let list = document["keys"].as_array_mut().unwrap();
        for (id, tenant, purpose) in
            [(LOOSE, "loose values", Purpose::Loose), (SEARCH, "acme", Purpose::Search)]
        {
            let at = list
                .iter()
                .position(|key| key["key_id"].as_str() == Some("9223372036854775807"))
                .unwrap();
            let mut key = list[at].clone();
            let key_id = KeyId::new(id).unwrap();
            let data_key = DataKey::generate().unwrap();
            let metadata = KeyMetadata {
                tenant,
                key_id,
                version: 1,
                purpose: purpose.name(),
                algorithm: purpose.algorithm(),
            };
            let fingerprint = key["master_key_fingerprint"].as_str().unwrap();
            let master_key =
                master_keys.iter().find(|one| one.fingerprint().to_hex() == fingerprint).unwrap();
            key["key_id"] = id.to_string().into();
            key["tenant"] = tenant.into();
            key["version"] = 1.into();
            key["purpose"] = purpose.name().into();
            key["algorithm"] = purpose.algorithm().into();
            key["wrapped_key"] = hex(&master_key.wrap_key(&data_key, &metadata).unwrap()).into();
            key["key_check"] = hex(&data_key.check(key_id)).into();
            list.insert(at, key);
        }
        document["version"] = 2.into();
        document.as_object_mut().unwrap().remove("authentication");
        let contents = Contents::parse(&document.to_string()).unwrap();
        let codes = master_keys.iter().map(|key| contents.authenticate(key)).collect();
        let sealed = contents.seal(codes).unwrap();
        room.vector["document"] = serde_json::from_str(&sealed).unwrap();
        room.write("export.json", sealed);
        room
    }

    fn loaded(&self) -> Vec<MasterKey> {
        let keys = self.master_keys();
        keys.iter().map(|hex| MasterKey::derive(&bytes(hex).try_into().unwrap())).collect()
    }

    fn data_key(&self, key_id: i64) -> (KeyId, DataKey) {
        let mut sealed = SealedExport::parse(&self.vector["document"].to_string()).unwrap();
        let master_keys = self.loaded();
        master_keys.iter().for_each(|key| sealed.check(key).unwrap());
        let (contents, _) = sealed.open().unwrap();
        let key = contents.keys().iter().find(|key| key.key_id.as_i64() == key_id).unwrap();
        let master_key =
            master_keys.iter().find(|one| one.fingerprint() == key.master_key).unwrap();
        let wrapped = key.wrapped_key.unwrap();
        let data_key = master_key.unwrap_key(&wrapped, &key.metadata(), &key.check).ok().unwrap();
        (key.key_id, data_key)
    }

    /// A value of suite 0x02 or 0x03 in its text form.
    fn bound(&self, key_id: i64, form: Form, binding: Binding, plaintext: &[u8]) -> String {
        let (key_id, data_key) = self.data_key(key_id);
        let header = Header { key_id, nonce: nonce(), form, binding };
        let key = data_key.bound_key(key_id, header.kind()).unwrap();
        let key = key.message_key(header.kind(), key_id, &header.nonce).unwrap();
        let mut buffer = vec![0; plaintext.len() + overhead(header.kind())];
        buffer[header.length()..][..plaintext.len()].copy_from_slice(plaintext);
        bound::seal_in_place(&key, &header, &mut buffer).unwrap();
        to_text(&buffer)
    }

    /// A value of suite 0x01 in its text form.
    fn value(&self, key_id: i64, context: &str, plaintext: &[u8]) -> String {
        let (key_id, data_key) = self.data_key(key_id);
        let nonce = nonce();
        let mut buffer = vec![0; plaintext.len() + OVERHEAD];
        buffer[PLAINTEXT_OFFSET..][..plaintext.len()].copy_from_slice(plaintext);
        let parts = [context];
        let context = match context {
            "" => Context::NONE,
            _ => Context::new(&parts).unwrap(),
        };
        let message_key = data_key.suite_key(key_id).message_key(&nonce);
        seal_in_place(&message_key, key_id, &nonce, &context, &mut buffer).unwrap();
        to_text(&buffer)
    }

    fn open(&self, more: &[&str], input: impl AsRef<[u8]>) -> Output {
        let (export, master_key) = (self.path("export.json"), self.path("master.key"));
        let mut arguments = vec!["open", "--export", &export, "--master-key", &master_key];
        arguments.extend(more);
        run(&arguments, input.as_ref())
    }
}

impl Room {
    fn check(&self) -> Output {
        run(&["check", &self.path("export.json"), "--master-key", &self.path("master.key")], b"")
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

fn nonce() -> Nonce {
    let scope = BlockScope { process: 1, transaction: 1, statement: 1 };
    let (mut block, mut entropy) = (NonceBlock::ENDED, SystemEntropy::NEW);
    block.next(scope, 0, &mut entropy).unwrap()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn bytes(hex: &str) -> Vec<u8> {
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
}

fn run(arguments: &[&str], input: &[u8]) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_fieldcrypt"))
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    // A program that refuses its arguments does not read.
    let writer = std::thread::spawn(move || drop(stdin.write_all(&input)));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    output
}

fn out(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn err(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[track_caller]
fn gives(output: &Output, status: i32, stdout: &str, stderr: &str) {
    assert_eq!(output.status.code(), Some(status), "{}", err(output));
    assert_eq!(out(output), stdout);
    assert!(err(output).contains(stderr), "{} does not say: {stderr}", err(output));
}

#[track_caller]
fn refuses(output: &Output, stderr: &str) {
    gives(output, 2, "", stderr);
}

#[test]
fn a_new_master_key_is_its_owners_alone_and_never_overwrites() {
    let room = Room::new();
    let path = room.path("new.key");
    let made = run(&["new-master-key", &path], b"");
    assert_eq!(made.status.code(), Some(0), "{}", err(&made));
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
    let text = fs::read_to_string(&path).unwrap();
    assert!(text.len() == 65 && text.trim_end().bytes().all(|byte| byte.is_ascii_hexdigit()));
    let mek: [u8; 32] = bytes(text.trim_end()).try_into().unwrap();
    let fingerprint = MasterKey::derive(&mek).fingerprint().to_hex();
    assert_eq!(out(&made), format!("{fingerprint}\n"));
    assert!(!err(&made).contains(text.trim_end()), "the key itself is never shown");
    gives(&run(&["fingerprint", &path], b""), 0, &format!("{fingerprint}\n"), "");

    refuses(&run(&["new-master-key", &path], b""), "File exists");
    assert_eq!(fs::read_to_string(&path).unwrap(), text);
    let second = room.path("second.key");
    run(&["new-master-key", &second], b"");
    assert_ne!(fs::read_to_string(&second).unwrap(), text);

    let link = room.path("link.key");
    symlink(room.path("nowhere"), &link).unwrap();
    refuses(&run(&["new-master-key", &link], b""), "File exists");
    assert!(!Path::new(&room.path("nowhere")).exists());
    refuses(&run(&["new-master-key", &room.path("no/folder")], b""), "No such file");
}

#[test]
fn a_folder_that_others_write_is_no_place_for_a_master_key() {
    let room = Room::new();
    for mode in [0o777, 0o770] {
        fs::set_permissions(&room.folder, fs::Permissions::from_mode(mode)).unwrap();
        let path = room.path("new.key");
        refuses(&run(&["new-master-key", &path], b""), "writable by others");
        assert!(!Path::new(&path).exists());
    }
}

#[test]
fn fingerprints_of_files_that_are_none_are_refused_without_quoting_them() {
    let room = Room::new();
    for (content, problem) in [
        ("", "no master key"),
        ("hunter2", "neither hex digits nor base64 in line 1"),
        ("# comment\n00ff", "2 bytes in line 2"),
        (&"#".repeat(40_000), "longer than"),
    ] {
        let output = run(&["fingerprint", &room.write("bad.key", content)], b"");
        refuses(&output, problem);
        assert!(!err(&output).contains("hunter2"));
    }
    refuses(&run(&["fingerprint", &room.path("missing")], b""), "No such file");
    fs::set_permissions(room.path("master.key"), fs::Permissions::from_mode(0o644)).unwrap();
    let output = run(&["fingerprint", &room.path("master.key")], b"");
    assert_eq!(out(&output).lines().count(), 2);
    assert!(err(&output).contains("can be read by others"));
}

#[test]
fn a_good_export_opens_key_by_key() {
    let room = Room::new();
    let checked =
        run(&["check", &room.path("export.json"), "--master-key", &room.path("master.key")], b"");
    assert_eq!(checked.status.code(), Some(0), "{}", err(&checked));
    let text = out(&checked);
    assert!(text.contains("GOOD: 5 keys, 4 open, 1 destroyed, 0 do not open"), "{text}");
    assert!(text.contains("made while the key states were not confirmed"), "{text}");
    assert!(text.contains("Praxis Müller 🔑"), "{text}");
    assert_eq!(text.matches("authentic by master key ").count(), 2);
    for key in room.master_keys() {
        assert!(!text.contains(&key));
    }
    // The same, from two files.
    let two = run(
        &[
            "check",
            &room.path("export.json"),
            "--master-key",
            &room.path("master.0"),
            "--master-key",
            &room.path("master.1"),
        ],
        b"",
    );
    assert_eq!(out(&two), text);
}

#[test]
fn an_export_that_was_changed_is_not_used() {
    let room = Room::new();
    let document = room.vector["document"].to_string();
    let value = room.value(ACME, "", b"secret");
    for (changed, problem) in [
        (document.replace("\"deactivated\"", "\"compromised\""), "NOT AUTHENTIC"),
        (document.replace("\"acme\"", "\"acne\""), "NOT AUTHENTIC"),
        (document.replace("\"version\":1", "\"version\":7"), "no usable key export: version 7"),
        (document[..400].to_owned(), "no usable key export: not the JSON"),
        (String::new(), "no usable key export"),
    ] {
        let path = room.write("changed.json", changed);
        let key = room.path("master.key");
        refuses(&run(&["check", &path, "--master-key", &key], b""), problem);
        let arguments = ["open", "--export", &path, "--master-key", &key];
        refuses(&run(&arguments, value.as_bytes()), problem);
    }
    let path = room.write("bytes.json", [0xFF, 0xFE]);
    refuses(&run(&["check", &path, "--master-key", &room.path("master.key")], b""), "UTF-8");
}

#[test]
fn the_master_keys_that_are_not_there_are_named() {
    let room = Room::new();
    let stranger = room.write("stranger.key", "77".repeat(32));
    let needed = MasterKey::derive(&bytes(&room.master_keys()[0]).try_into().unwrap());
    let output = run(&["check", &room.path("export.json"), "--master-key", &stranger], b"");
    refuses(&output, &needed.fingerprint().to_hex());
    refuses(&output, "it belongs to master key");

    // One of two: authentic, and what it wraps opens.
    let one =
        run(&["check", &room.path("export.json"), "--master-key", &room.path("master.0")], b"");
    assert_eq!(one.status.code(), Some(1));
    assert!(out(&one).contains("BAD: 5 keys, 2 open, 1 destroyed, 2 do not open"), "{}", out(&one));
    assert_eq!(out(&one).matches("NO MASTER KEY").count(), 2);

    let values = format!("{} {}", room.value(PRAXIS, "", b"one"), room.value(ACME, "", b"two"));
    let (export, key) = (room.path("export.json"), room.path("master.0"));
    let opened = run(&["open", "--export", &export, "--master-key", &key], values.as_bytes());
    assert_eq!(opened.status.code(), Some(1));
    assert!(out(&opened).starts_with("one fc1:"));
    assert!(err(&opened).contains("1 of a key whose master key is not given"));
}

#[test]
fn values_in_any_text_are_replaced_and_nothing_else() {
    let room = Room::new();
    let one = room.value(ACME, "", "Grüße 🔑".as_bytes());
    let two = room.value(DEFAULT_2, "", b"");
    let three = room.value(PRAXIS, "", &[0, 1, 0xFF]);
    let text = format!(
        "{one}\n{{{one},\"{one}\"}}\t({two})\r\n'{three}' fc fc1 fc1 : ffc1: afc1:x f\0\u{1}ü {one}"
    );
    let expected = "Grüße 🔑\n{Grüße 🔑,\"Grüße 🔑\"}\t()\r\n'\\x0001ff' fc fc1 fc1 : ffc1: afc1:x f\0\u{1}ü Grüße 🔑";
    let opened = room.open(&[], &text);
    gives(&opened, 0, expected, "6 values opened");
    // From a file, too.
    gives(&room.open(&[&room.write("dump.sql", &text)], ""), 0, expected, "6 values opened");
    gives(&room.open(&[], ""), 0, "", "0 values opened");
    // What is not UTF-8 passes through.
    let binary = [b"\xFF\x00".as_slice(), one.as_bytes(), b"\xFE"].concat();
    let opened = room.open(&[], binary);
    assert_eq!(opened.stdout, [b"\xFF\x00".as_slice(), "Grüße 🔑".as_bytes(), b"\xFE"].concat());
}

#[test]
fn values_are_found_wherever_the_reads_cut_them() {
    let room = Room::new();
    let values: Vec<String> =
        (0..40).map(|i| room.value(ACME, "", format!("{i}-").repeat(i * 97).as_bytes())).collect();
    let plain: Vec<String> = (0..40).map(|i| format!("{i}-").repeat(i * 97)).collect();
    let mut text = String::new();
    let mut expected = String::new();
    for round in 0..400 {
        let filler = "f".repeat(round % 7) + &"-fc1 ".repeat(round);
        text += &format!("{filler} {}\n", values[round % 40]);
        expected += &format!("{filler} {}\n", plain[round % 40]);
    }
    assert!(text.len() > 1 << 20);
    gives(&room.open(&[], &text), 0, &expected, "400 values opened");
}

#[test]
fn what_does_not_open_is_left_counted_and_never_shown() {
    let room = Room::new();
    let good = room.value(ACME, "", b"a plaintext");
    let mut tampered = good.clone();
    let at = tampered.len() - 3;
    let other = if tampered.as_bytes()[at] == b'A' { "B" } else { "A" };
    tampered.replace_range(at..=at, other);
    let bound = room.value(ACME, "patients.ssn/1", b"bound");
    let mut unknown = SealedBytes::of(&good);
    unknown.set_key_id(4711);
    let mut destroyed = SealedBytes::of(&good);
    destroyed.set_key_id(DESTROYED);
    let (unknown, destroyed) = (unknown.text(), destroyed.text());
    let text = format!("{good}|{tampered}|{bound}|{unknown}|{destroyed}|fc1:|fc1:AAAA|fc1:=");
    let opened = room.open(&[], &text);
    let expected =
        format!("a plaintext|{tampered}|{bound}|{unknown}|{destroyed}|fc1:|fc1:AAAA|fc1:=");
    gives(
        &opened,
        1,
        &expected,
        "1 values opened, 7 left as they are: 3 malformed, 2 not authentic",
    );
    gives(&opened, 1, &expected, "1 of a key that the export does not hold, 1 of a destroyed key");
    assert!(!err(&opened).contains("plaintext"));

    gives(&room.open(&["--context", "patients.ssn/1"], &bound), 0, "bound", "1 values opened");
    gives(&room.open(&["--context", "patients.ssn/2"], &bound), 1, &bound, "0 values opened");
    gives(&room.open(&["--context", "x"], &good), 1, &good, "not authentic");
}

fn place(context: &str) -> Place {
    Place::new(*b"salt", context)
}

const STAMP: Stamp = Stamp { database: 5, process: 4711, sealed_at: 0 };

#[test]
fn values_that_carry_their_place_open_without_any_context() {
    let room = Room::with_keys_of_all_purposes();
    let checked = room.check();
    assert_eq!(checked.status.code(), Some(0), "{}", out(&checked));
    assert!(out(&checked).contains("GOOD: 7 keys, 6 open, 1 destroyed, 0 do not open"));
    let (search, key) = room.data_key(SEARCH);
    let domain = Domain::named("public.t.ssn", Form::Digits).unwrap();
    let tag = key.tag_key(search, domain).unwrap().tag_of(b"123-45-6789").unwrap();
    let at = |context| Binding::Bound(place(context));
    let values = [
        room.bound(ACME, Form::Text, at("public.t.note/1"), "Grüße".as_bytes()),
        room.bound(ACME, Form::Digits, Binding::Searchable(place("t.ssn/1"), tag), b"123-45-6789"),
        room.bound(PRAXIS, Form::Integer, at("t.n/1"), &(-17i64).to_be_bytes()),
        room.bound(ACME, Form::Numeric, at("t.n/1"), b"1.50"),
        room.bound(ACME, Form::Date, at("t.n/1"), &428i32.to_be_bytes()),
        room.bound(ACME, Form::Timestamptz, at("t.n/1"), &37_083_967_500_000i64.to_be_bytes()),
        room.bound(ACME, Form::Uuid, at("t.n/1"), &[0xA0; 16]),
        room.bound(ACME, Form::Boolean, at("t.n/1"), &[1]),
        room.bound(ACME, Form::Jsonb, at("t.n/1"), b"{\"a\": 1.0}"),
        room.bound(LOOSE, Form::Text, Binding::Loose(STAMP), b"on its way"),
    ];
    let plain = "Grüße|123-45-6789|-17|1.50|2001-03-04|2001-03-05T05:06:07.500000Z|\
                 a0a0a0a0-a0a0-a0a0-a0a0-a0a0a0a0a0a0|true|{\"a\": 1.0}|on its way";
    let summary = "10 values opened, 9 of them without a check of their place, 1 of them loose (in no row yet)\n";
    gives(&room.open(&[], values.join("|")), 0, plain, summary);
    gives(&room.open(&["--context", ""], values.join("|")), 0, plain, summary);
}

#[test]
fn a_place_is_checked_where_a_context_is_given() {
    let room = Room::with_keys_of_all_purposes();
    let one = room.bound(ACME, Form::Text, Binding::Bound(place("t.ssn/1")), b"one");
    let two = room.bound(ACME, Form::Text, Binding::Bound(place("t.ssn/2")), b"two");
    let loose = room.bound(LOOSE, Form::Text, Binding::Loose(STAMP), b"loose");
    let opened = room.open(&["--context", "t.ssn/1"], format!("{one}|{two}|{loose}"));
    let left = "1 values opened, 2 left as they are: 2 bound to another place, or to none yet\n";
    gives(&opened, 1, &format!("one|{two}|{loose}"), left);

    let csv = format!("id,ssn\n1,{one}\n1,{two}\n2,{two}\n");
    let arguments = ["--csv", "--column-context", "ssn=t.ssn/{id}"];
    let opened = room.open(&arguments, &csv);
    gives(&opened, 1, &format!("id,ssn\n1,one\n1,{two}\n2,two\n"), "2 values opened, 1 left");
}

#[test]
fn a_dump_opens_whose_columns_have_no_context_but_that_in_their_values() {
    let room = Room::with_keys_of_all_purposes();
    let ssn = room.value(PRAXIS, "t.ssn/1", b"by context");
    let note = room.bound(ACME, Form::Text, Binding::Bound(place("public.t.note/1")), b"by itself");
    let data = format!(
        "COPY public.t (id, ssn, note) FROM stdin;\n1\t{ssn}\t{note}\n\\.\n-- outside: {note}\n"
    );
    let path = dump(&room, "dump.sql", &data);
    let opened = room.open(&["--escape", "copy", &path], "");
    assert_eq!(opened.status.code(), Some(0), "{}", err(&opened));
    assert!(out(&opened).contains("1\tby context\tby itself\n"), "{}", out(&opened));
    assert!(out(&opened).contains("-- outside: by itself\n"), "{}", out(&opened));
    assert!(err(&opened).contains("3 values opened, 2 of them without a check of their place"));
    let given = ["--escape", "copy", "--column-context", "public.t.note=public.t.note/{id}", &path];
    assert!(err(&room.open(&given, "")).contains("3 values opened, 1 of them without a check"));
}

#[test]
fn bound_values_that_are_not_what_they_say_are_left_and_named() {
    let room = Room::with_keys_of_all_purposes();
    let changed = |text: &str, at: usize, byte: u8| {
        let mut value = fieldcrypt_envelope::from_any_text(text.as_bytes()).unwrap();
        value[at] = byte;
        to_text(&value)
    };
    let relabelled = |text: &str, key_id: i64| {
        let mut value = fieldcrypt_envelope::from_any_text(text.as_bytes()).unwrap();
        value[2..10].copy_from_slice(&key_id.to_be_bytes());
        to_text(&value)
    };
    let bound = room.bound(ACME, Form::Text, Binding::Bound(place("t.ssn/1")), b"a plaintext");
    let loose = room.bound(LOOSE, Form::Text, Binding::Loose(STAMP), b"a plaintext");
    let number = room.bound(ACME, Form::Integer, Binding::Bound(place("t.ssn/1")), b"17");
    for (value, why) in [
        (changed(&bound, 27, 0), "1 not authentic"),
        (changed(&bound, 50, 0), "1 not authentic"),
        (changed(&bound, 26, 2), "1 not authentic"),
        (changed(&bound, 1, 4), "1 of a later version"),
        (changed(&bound, 26, 11), "1 of a later version"),
        (changed(&bound, 26, 0), "1 malformed"),
        (changed(&bound, 26, 0x81), "1 of a key that does not open"),
        (changed(&loose, 26, 0x01), "1 of a key that does not open"),
        (relabelled(&bound, SEARCH), "1 of a key that does not open"),
        (relabelled(&bound, LOOSE), "1 of a key that does not open"),
        (relabelled(&loose, ACME), "1 of a key that does not open"),
        (relabelled(&bound, DESTROYED), "1 of a destroyed key"),
        (relabelled(&bound, 4711), "1 of a key that the export does not hold"),
        (number, "1 authentic, but not of the form"),
    ] {
        gives(&room.open(&[], &value), 1, &value, why);
    }
}

/// The bytes of a value, to forge some.
struct SealedBytes(Vec<u8>);

impl SealedBytes {
    fn of(text: &str) -> Self {
        Self(fieldcrypt_envelope::ciphertext::from_text(text.as_bytes()).ok().unwrap())
    }

    fn set_key_id(&mut self, id: i64) {
        self.0[2..10].copy_from_slice(&id.to_be_bytes());
    }

    fn text(&self) -> String {
        to_text(&self.0)
    }
}

#[test]
fn opened_values_do_not_break_the_dump_around_them() {
    let room = Room::new();
    let value = room.value(ACME, "", "it's\ta \\ new\nline\r".as_bytes());
    let bytes = room.value(ACME, "", &[0xDE, 0xAD, 0xFF]);
    let text = format!("1\t{value}\t{bytes}\n");
    let copied = "1\tit's\\ta \\\\ new\\nline\\r\t\\\\xdeadff\n";
    gives(&room.open(&["--escape", "copy"], &text), 0, copied, "2 values");
    let quoted = "1\tit''s\ta \\ new\nline\r\t\\xdeadff\n";
    gives(&room.open(&["--escape", "sql"], &text), 0, quoted, "2 values");
}

#[test]
fn csv_columns_have_contexts_of_their_own() {
    let room = Room::new();
    let ssn = |id: u32| {
        room.value(ACME, &format!("patients.ssn/{id}"), format!("ssn \"{id}\", of\na").as_bytes())
    };
    let note = room.value(PRAXIS, "notes", b"a note");
    let braces = room.value(PRAXIS, "{x}", b"braces");
    let text = format!(
        "id,ssn,note,\"with, comma\"\n1,{},{note},{braces}\n2,{},,\n3,plain,\"{{{note},{note}}}\",\n",
        ssn(1),
        ssn(2)
    );
    let arguments = [
        "--csv",
        "--context",
        "notes",
        "--column-context",
        "ssn=patients.ssn/{id}",
        "--column-context",
        "with, comma={{x}}",
    ];
    let expected = "id,ssn,note,\"with, comma\"\n1,\"ssn \"\"1\"\", of\na\",a note,braces\n\
                    2,\"ssn \"\"2\"\", of\na\",,\n3,plain,\"{a note,a note}\",\n";
    gives(&room.open(&arguments, &text), 0, expected, "6 values opened");
    let without = room.open(&["--csv"], &text);
    assert_eq!(without.status.code(), Some(1));
    assert!(err(&without).contains("0 values opened, 6 left as they are: 6 not authentic"));

    let tabs = text.replace("\"with, comma\"", "last").replace(',', "\t");
    assert!(tabs.contains('\t'));
    let tab = ["--csv", "--delimiter", "\t", "--column-context", "ssn=patients.ssn/{id}"];
    let opened = room.open(&tab, &tabs);
    assert!(out(&opened).contains("1\t\"ssn \"\"1\"\", of\na\"\t"), "{}", out(&opened));
}

#[test]
fn csv_that_can_not_be_meant_is_refused() {
    let room = Room::new();
    let text = "id,ssn,ssn\n1,2,3\n";
    for (arguments, input, problem) in [
        (vec!["--csv", "--column-context", "none=x"], text, "no column \"none\""),
        (vec!["--csv", "--column-context", "id=x/{none}"], text, "no column \"none\""),
        (vec!["--csv", "--column-context", "ssn=x"], text, "\"ssn\" twice"),
        (vec!["--csv", "--column-context", "id"], text, "COLUMN=TEMPLATE"),
        (vec!["--csv", "--column-context", "id={ssn"], text, "a brace without its other"),
        (vec!["--csv", "--column-context", "id=a}"], text, "a brace without its other"),
        (vec!["--csv", "--delimiter", "ü"], text, "ASCII"),
        (vec!["--column-context", "id=x"], text, "with --csv"),
        (vec!["--delimiter", ";"], text, "needs --csv"),
        (vec!["--csv", "--escape", "copy"], text, "not for --csv"),
    ] {
        refuses(&room.open(&arguments, input), problem);
    }
    let ragged = room.open(&["--csv"], "a,b\n1,2\n3\n");
    assert_eq!(ragged.status.code(), Some(2));
    assert!(err(&ragged).contains("1 fields at line 3, and 2 in the header"), "{}", err(&ragged));
    refuses(&room.open(&["--csv", &room.path("missing.csv")], ""), "No such file");
}

/// A dump whose contexts come after its values.
fn dump(room: &Room, name: &str, data: &str) -> String {
    let table =
        "CREATE TABLE public.t (\n    id bigint NOT NULL,\n    ssn fieldcrypt.encrypted\n);\n";
    let contexts = "COPY fieldcrypt.column_contexts (table_name, column_name, constant, expression) FROM stdin;\n\
                    public.t\tssn\t\\N\tfieldcrypt.context('t.ssn', id)\n\\.\n";
    room.write(name, format!("{table}{data}{contexts}"))
}

#[test]
fn a_dump_opens_by_the_contexts_that_it_holds() {
    let room = Room::new();
    let value = room.value(PRAXIS, "t.ssn/-7", b"it's\ta tab");
    for (escape, data, opened) in [
        (
            "copy",
            format!("COPY public.t (id, ssn) FROM stdin;\n-7\t{value}\n8\t\\N\n\\.\n"),
            "-7\tit's\\ta tab\n8\t\\N\n",
        ),
        (
            "copy",
            format!("COPY public.t (ssn, id) FROM stdin;\r\n{value}\t-7\r\n\\.\r\n"),
            "it's\\ta tab\t-7\r\n",
        ),
        ("sql", format!("INSERT INTO public.t VALUES (-7, '{value}');\n"), "(-7, 'it''s\ta tab');"),
        (
            "sql",
            format!(
                "INSERT INTO public.t (ssn, id) OVERRIDING SYSTEM VALUE VALUES\n\t('{value}', -7),\n\t(NULL, 8)\n\
                 ON CONFLICT DO NOTHING;\n"
            ),
            "('it''s\ta tab', -7)",
        ),
    ] {
        let path = dump(&room, "dump.sql", &data);
        let output = room.open(&["--escape", escape, &path], "");
        assert_eq!(output.status.code(), Some(0), "{data}: {}", err(&output));
        assert!(out(&output).contains(opened), "{data}: {}", out(&output));
    }
}

#[test]
fn a_value_of_a_dump_that_is_not_of_its_row_is_left() {
    let room = Room::new();
    let value = room.value(PRAXIS, "t.ssn/7", b"secret");
    for data in [
        format!("COPY public.t (id, ssn) FROM stdin;\n8\t{value}\n\\.\n"),
        format!("COPY public.t (id, ssn) FROM stdin;\n\\N\t{value}\n\\.\n"),
        format!("COPY public.t (id, ssn) FROM stdin;\n7\t7\t{value}\n\\.\n"),
        format!("COPY public.t (ssn) FROM stdin;\n{value}\n\\.\n"),
        format!("COPY public.u (id, ssn) FROM stdin;\n7\t{value}\n\\.\n"),
        format!("INSERT INTO public.t VALUES (7 + 0, '{value}');\n"),
        format!("INSERT INTO public.t VALUES (8, '{value}'), (7, 7, '{value}');\n"),
        format!("INSERT INTO public.t VALUES (7, '{value}'"),
        format!("COPY public.t (id, ssn) FROM stdin\n7\t{value}\n"),
    ] {
        let path = dump(&room, "dump.sql", &data);
        let output = room.open(&[&path], "");
        assert_eq!(output.status.code(), Some(1), "{data}: {}", err(&output));
        assert!(!out(&output).contains("secret"), "{data}");
        assert!(out(&output).contains(&value), "{data}: it is left as it is");
    }
}

/// Another column's value, bound to nothing, was put where values are bound: the server does not open it there.
#[test]
fn a_value_from_a_column_without_a_context_does_not_open_where_there_is_one() {
    let room = Room::new();
    let (note, other) = (room.value(PRAXIS, "", b"secret"), room.value(PRAXIS, "other", b"secret"));
    for data in [
        format!("COPY public.t (id, ssn) FROM stdin;\n2\t{note}\n\\.\n"),
        format!("COPY public.t (id, ssn) FROM stdin;\n\\N\t{note}\n\\.\n"),
        format!("COPY public.t (ssn) FROM stdin;\n{note}\n\\.\n"),
        format!("COPY public.t (id, ssn) FROM stdin;\n2\t2\t{note}\n\\.\n"),
        format!("INSERT INTO public.t VALUES (2, '{note}');\n"),
        format!("INSERT INTO public.t VALUES (2 + 0, '{note}');\n"),
        format!("INSERT INTO public.t VALUES (2, 2, '{note}');\n"),
        format!("INSERT INTO public.t VALUES (2, '{note}'"),
        format!(
            "CREATE TABLE public.a (\n    id bigint\n);\nCREATE TABLE public.c (\n    more text\n)\nINHERITS (public.a, public.t);\n\
             COPY public.c (id, ssn, more) FROM stdin;\n2\t{note}\t\\N\n\\.\n"
        ),
    ] {
        let path = dump(&room, "dump.sql", &data);
        let output = room.open(&[&path], "");
        assert_eq!(output.status.code(), Some(1), "{data}: {}", err(&output));
        assert!(out(&output).contains(&note), "{data}: it is left as it is");
        assert!(err(&output).contains(": 1 left: "), "{data}: {}", err(&output));
        assert!(err(&output).contains("0 values opened, 1 left as they are: "), "{}", err(&output));
    }
    // A context that somebody gives is for columns without one, too.
    let data = format!(
        "COPY public.t (id, ssn) FROM stdin;\n2\t{other}\n\\.\nCOPY public.u (id, note) FROM stdin;\n2\t{other}\n\\.\n"
    );
    let path = dump(&room, "dump.sql", &data);
    let output = room.open(&["--context", "other", &path], "");
    assert_eq!(output.status.code(), Some(1));
    assert!(
        out(&output).contains(&format!(
            "2\t{other}\n\\.\nCOPY public.u (id, note) FROM stdin;\n2\tsecret\n"
        ))
    );
    assert!(
        err(&output)
            .contains("public.t.ssn: 1 left: they do not open with the context of their row")
    );
    // What is known to be older than the column's context is opened by naming that.
    let data = format!("COPY public.t (id, ssn) FROM stdin;\n2\t{note}\n\\.\n");
    let path = dump(&room, "dump.sql", &data);
    let output = room.open(&["--column-context", "public.t.ssn=", &path], "");
    assert!(output.status.code() == Some(0) && out(&output).contains("2\tsecret\n"));
    // Read only once, the context comes too late: what was opened before is named.
    let output = room.open(&[], fs::read(&path).unwrap());
    assert_eq!(output.status.code(), Some(1));
    assert!(
        err(&output).contains("public.t.ssn: 1 opened before the dump gave its context"),
        "{}",
        err(&output)
    );
}

/// Who owns any table writes comments, names and rows into the dump: none of them hides a context, or gives one.
#[test]
fn what_owners_of_tables_write_is_no_part_of_the_dumps_own_words() {
    let room = Room::new();
    let (value, note) =
        (room.value(PRAXIS, "t.ssn/7", b"opened"), room.value(PRAXIS, "", b"secret"));
    let forged = "COPY fieldcrypt.column_contexts (table_name, column_name, constant, expression) FROM stdin;\n\
                  public.t\tssn\t\\N\t'' || ''\n\\.\n";
    let data = format!("COPY public.t (id, ssn) FROM stdin;\n7\t{value}\n2\t{note}\n\\.\n");
    for written in [
        String::new(),
        "COMMENT ON TABLE public.t IS 'costs $x$, it''s $$';\n".into(),
        "COMMENT ON TABLE public.t IS E'it''s \\\\ $x$\n$y$';\n".into(),
        "-- Name: it's \"; Type: TABLE\n".into(),
        "\\connect it's\n".into(),
        format!("COMMENT ON TABLE public.t IS 'it is\n{forged}';\n"),
        format!("COMMENT ON TABLE public.\"a\n{forged}\" IS 'x';\n"),
        format!("CREATE FUNCTION f() RETURNS text LANGUAGE sql AS $_$\nSELECT '\n{forged}$_$;\n"),
        format!("CREATE VIEW v AS\n SELECT E'\\\\''\n{forged}'::text;\n"),
        format!(
            "CREATE TABLE public.x (\n    a text DEFAULT '{}\n{forged}'\n);\n",
            "x".repeat(1 << 24)
        ),
        format!("COPY public.\"t\nu\" (a) FROM stdin;\n{forged}"),
        format!("COPY public.\"t\nu\"  FROM stdin;\n{forged}"),
        format!("INSERT INTO public.x VALUES ('it is\n{forged}');\n"),
    ] {
        for text in [format!("{written}{data}"), format!("{data}{written}")] {
            let output = room.open(&[&dump(&room, "dump.sql", &text)], "");
            let start: String = written.chars().take(200).collect();
            assert_eq!(output.status.code(), Some(1), "{start}: {}", err(&output));
            assert!(out(&output).contains("7\topened\n"), "{start}: {}", err(&output));
            assert!(out(&output).contains(&format!("2\t{note}\n")), "{start}: {}", err(&output));
        }
    }
}

#[test]
fn numbers_of_inserts_are_as_the_server_wrote_them() {
    let room = Room::new();
    let value = room.value(PRAXIS, "f/1e+20/-2.5e-07", b"opened");
    let text = format!(
        "CREATE TABLE public.f (\n    a double precision,\n    b real,\n    ssn fieldcrypt.encrypted\n);\n\
         COPY fieldcrypt.column_contexts (table_name, column_name, constant, expression) FROM stdin;\n\
         public.f\tssn\t\\N\t'f/' || a || '/' || b\n\\.\n\
         INSERT INTO public.f VALUES (1e+20, -2.5e-07, '{value}');\n"
    );
    let output = room.open(&[&room.write("dump.sql", text)], "");
    assert_eq!(output.status.code(), Some(0), "{}", err(&output));
    assert!(out(&output).contains("(1e+20, -2.5e-07, 'opened')"));
}

/// Each table has the columns of all before it.
#[test]
fn a_chain_of_tables_costs_what_it_is_long() {
    let room = Room::new();
    let value = room.value(PRAXIS, "t.ssn/7", b"opened");
    let mut text = String::from("CREATE TABLE public.t0 (\n    id bigint,\n    ssn text\n);\n");
    for at in 1..6000 {
        let before = at - 1;
        text += &format!(
            "CREATE TABLE public.t{at} (\n    column_number_{at} text\n)\nINHERITS (public.t{before});\n"
        );
    }
    text += &format!("COPY public.t5999 (id, ssn) FROM stdin;\n7\t{value}\n\\.\n");
    text += "COPY fieldcrypt.column_contexts (table_name, column_name, constant, expression) FROM stdin;\n\
             public.t0\tssn\t\\N\tfieldcrypt.context('t.ssn', id)\n\\.\n";
    let path = room.write("dump.sql", text);
    let (export, key) = (room.path("export.json"), room.path("master.key"));
    let limited = "ulimit -v 200000; exec \"$@\"";
    let output = Command::new("sh")
        .args(["-c", limited, "sh", env!("CARGO_BIN_EXE_fieldcrypt"), "open", "--export", &export])
        .args(["--master-key", &key, &path])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", err(&output));
    assert!(out(&output).contains("7\topened\n"));
}

#[test]
fn what_looks_like_a_dump_goes_through_unchanged() {
    let room = Room::new();
    for text in [
        "INSERT INTO",
        "INSERT INTO x VALUES ('open\n\nCREATE TABLE (((\n",
        "CREATE TABLE public.t (id \u{fc}\n",
        "ALTER TABLE ONLY;\nALTER TABLE a ATTACH PARTITION a;\nCOPY a (b) FROM stdin;\nfc1:\n",
        "COPY (((;\nCOPY a () FROM stdin;\nCREATE DOMAIN d AS;\n$$\n'\n$x$\n",
        "COPY fieldcrypt.column_contexts (table_name) FROM stdin;\n\\x\\\n\t\t\n",
    ] {
        let path = room.write("dump.sql", text);
        assert_eq!(out(&room.open(&[&path], "")), text);
        assert_eq!(out(&room.open(&[], text)), text);
    }
}
