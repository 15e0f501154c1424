//! Texts that claim to be key exports: read, sealed, changed, and read again.

#![no_main]

use std::sync::LazyLock;

use fieldcrypt_envelope::MasterKey;
use fieldcrypt_envelope::key_export::{Contents, SealedExport};
use libfuzzer_sys::fuzz_target;

static MASTER_KEY: LazyLock<MasterKey> = LazyLock::new(|| MasterKey::derive(&[0x4D; 32]));

fuzz_target!(|data: &[u8]| {
    let Ok(text) = str::from_utf8(data) else { return };
    if let Ok(mut sealed) = SealedExport::parse(text) {
        // The fuzzer holds no master key of it: nothing it writes is authentic, and unchecked nothing opens.
        let by_stranger = sealed.check(&MASTER_KEY);
        let named = sealed.master_keys().contains(&MASTER_KEY.fingerprint());
        assert_eq!(by_stranger.is_err(), named);
        assert!(sealed.open().is_err());
    }
    let Ok(contents) = Contents::parse(text) else { return };
    let again = contents.to_json();
    assert!(again.is_ascii());
    assert!(Contents::parse(&again).is_ok_and(|read| read == contents));
    assert!(contents.keys().is_sorted_by(|a, b| a.key_id < b.key_id));
    for key in contents.keys() {
        if let Some(wrapped) = &key.wrapped_key {
            assert!(MASTER_KEY.unwrap_key(wrapped, &key.metadata(), &key.check).is_err());
        }
    }
    // Sealed by our key alone, only if no other one is needed; then authentic, until one byte changes.
    let needed = contents.authenticating_master_keys();
    let sealed = contents.seal(vec![contents.authenticate(&MASTER_KEY)]);
    assert_eq!(sealed.is_some(), needed.iter().all(|one| *one == MASTER_KEY.fingerprint()));
    let Some(document) = sealed else { return };
    let opened = |text: &str| {
        let mut sealed = SealedExport::parse(text).ok()?;
        sealed.check(&MASTER_KEY).ok()?;
        sealed.open().ok().map(|(contents, _)| contents)
    };
    assert!(opened(&document).is_some_and(|read| read == contents));
    let at = data.len() % document.len();
    for byte in [b'0', b'1', b'a', b'"', b' '] {
        let mut changed = document.clone().into_bytes();
        changed[at] = byte;
        let changed = String::from_utf8(changed).unwrap_or_default();
        assert!(opened(&changed).is_none_or(|read| read == contents), "changed, but authentic");
    }
});
