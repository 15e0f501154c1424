//! Texts that claim to be exports of an audit log: verified, without keys. The fuzzer's seeds hold a real
//! one; it has neither its signing keys nor its audit key.

#![no_main]

use fieldcrypt_audit::export;
use fieldcrypt_audit::verify::{NoKeys, Status};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok((findings, summary)) = export::verify(data, Vec::new(), &mut NoKeys) else { return };
    let worst = findings.iter().map(|finding| finding.status()).max();
    assert_eq!(worst.unwrap_or_default(), summary.status);
    // A root that is said to be that of the rows was signed.
    assert!(summary.root.is_none() || summary.checkpoints > 0);
    assert_eq!(summary.anchored_size, 0);
    assert!(summary.authentic_rows == 0);
    if summary.checkpoints > 0 {
        // Nobody vouches for a signer without the audit key.
        assert!(summary.status >= Status::Warning);
    }
});
