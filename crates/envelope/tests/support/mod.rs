//! What the tests share: values sealed with chosen nonces, and the formulas of `tests/vectors`
//! worked out again from other people's code, to compare with.

#![allow(dead_code)]

use fieldcrypt_envelope::bound::{self, overhead};
use fieldcrypt_envelope::ciphertext::{OVERHEAD, PLAINTEXT_OFFSET, seal_in_place};
use fieldcrypt_envelope::{
    BlockScope, BoundMessageKey, Context, DataKey, Entropy, Header, KeyId, KeyMetadata, MasterKey,
    Nonce, NonceBlock, RandomnessUnavailable, WrongKey,
};
use hkdf::Hkdf;
use sha2::Sha256;
use xaes_256_gcm::Xaes256Gcm;
use xaes_256_gcm::aead::{Aead, KeyInit, Payload};

pub const SCOPE: BlockScope = BlockScope { process: 1, transaction: 2, statement: 3 };

/// A source that gives chosen block starts, and then none.
pub struct Starts(pub Vec<[u8; 16]>);

impl Entropy for Starts {
    fn block_start(&mut self, _: BlockScope) -> Result<[u8; 16], RandomnessUnavailable> {
        self.0.pop().ok_or(RandomnessUnavailable)
    }
}

/// A nonce of one's choice, by the only way that deals one for sealing.
pub fn nonce(bytes: [u8; 16]) -> Nonce {
    let mut block = NonceBlock::ENDED;
    block.next(SCOPE, 0, &mut Starts(vec![bytes])).unwrap()
}

pub fn key_id(id: i64) -> KeyId {
    KeyId::new(id).unwrap()
}

pub fn seal(
    key: &DataKey,
    id: KeyId,
    nonce: &Nonce,
    context: &Context<'_>,
    plaintext: &[u8],
) -> Vec<u8> {
    let mut buffer = vec![0; plaintext.len() + OVERHEAD];
    buffer[PLAINTEXT_OFFSET..][..plaintext.len()].copy_from_slice(plaintext);
    let message_key = key.suite_key(id).message_key(nonce);
    seal_in_place(&message_key, id, nonce, context, &mut buffer).unwrap();
    buffer
}

/// A data key of a tenant, of chosen bytes.
pub fn data_key(bytes: [u8; 32]) -> DataKey {
    data_key_for("field", bytes)
}

/// A data key of chosen bytes. The core makes none, so this wraps one by the formula, with other
/// people's code, and has the core unwrap it.
pub fn data_key_for(purpose: &str, bytes: [u8; 32]) -> DataKey {
    let metadata = KeyMetadata {
        tenant: "default",
        key_id: key_id(1),
        version: 1,
        purpose,
        algorithm: "XAES-256-GCM",
    };
    let master_key = [0x4D; 32];
    let wrapped = wrap_by_hand(&master_key, &bytes, &metadata, &[0x4E; 24]);
    MasterKey::derive(&master_key)
        .unwrap_key(
            &wrapped,
            &metadata,
            &hkdf_by_hand(&bytes, &[b"dek-check", &1i64.to_be_bytes()])[..16],
        )
        .ok()
        .unwrap()
}

/// `HKDF-SHA256(salt = "pg_fieldcrypt/v1", ikm, info)`, 32 bytes; a shorter output is its start.
pub fn hkdf_by_hand(ikm: &[u8; 32], info: &[&[u8]]) -> [u8; 32] {
    let mut out = [0; 32];
    Hkdf::<Sha256>::new(Some(b"pg_fieldcrypt/v1"), ikm).expand(&info.concat(), &mut out).unwrap();
    out
}

pub fn suite_key_by_hand(data_key: &[u8; 32], id: i64) -> [u8; 32] {
    hkdf_by_hand(data_key, &[b"suite", &[0x01], &id.to_be_bytes()])
}

/// Seals a value of suite 0x02 or 0x03.
pub fn seal_bound(key: &DataKey, header: &Header, plaintext: &[u8]) -> Vec<u8> {
    let mut buffer = vec![0; plaintext.len() + overhead(header.kind())];
    buffer[header.length()..][..plaintext.len()].copy_from_slice(plaintext);
    bound::seal_in_place(&message_key(key, header).unwrap(), header, &mut buffer).unwrap();
    buffer
}

pub fn message_key(key: &DataKey, header: &Header) -> Result<BoundMessageKey, WrongKey> {
    key.bound_key(header.key_id, header.kind())?.message_key(
        header.kind(),
        header.key_id,
        &header.nonce,
    )
}

/// Opens a value of suite 0x02 or 0x03 with other people's code, by the offsets of its specification.
pub fn open_bound_by_hand(data_key: &[u8; 32], value: &[u8]) -> Option<Vec<u8>> {
    let suite_key = hkdf_by_hand(data_key, &[b"suite", &value[1..2], &value[2..10]]);
    let mut long_nonce = [0; 24];
    long_nonce[..12].copy_from_slice(&value[10..22]);
    long_nonce[20..].copy_from_slice(&value[22..26]);
    let (aad, sealed) = value.split_at(if value[1] == 0x02 { 43 } else { 75 });
    Xaes256Gcm::new(&suite_key.into())
        .decrypt(&long_nonce.into(), Payload { msg: sealed, aad })
        .ok()
}

pub fn canonical_by_hand(parts: &[&[u8]]) -> Vec<u8> {
    let mut out = u16::try_from(parts.len()).unwrap().to_be_bytes().to_vec();
    for part in parts {
        out.extend(u32::try_from(part.len()).unwrap().to_be_bytes());
        out.extend(*part);
    }
    out
}

pub fn wrap_by_hand(
    master_key: &[u8; 32],
    data_key: &[u8; 32],
    metadata: &KeyMetadata<'_>,
    nonce: &[u8; 24],
) -> Vec<u8> {
    let id = metadata.key_id.as_i64().to_be_bytes();
    let check = hkdf_by_hand(data_key, &[b"dek-check", &id]);
    wrap_with_check(master_key, data_key, metadata, nonce, &check[..16])
}

pub fn wrap_with_check(
    master_key: &[u8; 32],
    data_key: &[u8; 32],
    metadata: &KeyMetadata<'_>,
    nonce: &[u8; 24],
    check: &[u8],
) -> Vec<u8> {
    let id = metadata.key_id.as_i64().to_be_bytes();
    let aad = canonical_by_hand(&[
        b"pg_fieldcrypt/v1 wrapped key",
        metadata.tenant.as_bytes(),
        &id,
        &metadata.version.to_be_bytes(),
        metadata.purpose.as_bytes(),
        metadata.algorithm.as_bytes(),
        &hkdf_by_hand(master_key, &[b"mek-fingerprint"])[..16],
        check,
    ]);
    let wrap_key = hkdf_by_hand(master_key, &[b"wrap"]);
    let sealed = Xaes256Gcm::new(&wrap_key.into())
        .encrypt(nonce.into(), Payload { msg: data_key, aad: &aad })
        .unwrap();
    [&[0x01], nonce.as_slice(), &sealed].concat()
}

pub fn open_by_hand(data_key: &[u8; 32], value: &[u8], context: &[&[u8]]) -> Option<Vec<u8>> {
    let id = i64::from_be_bytes(value[2..10].try_into().unwrap());
    let mut long_nonce = [0; 24];
    long_nonce[..12].copy_from_slice(&value[10..22]);
    long_nonce[20..].copy_from_slice(&value[22..26]);
    let aad = [&value[..10], &canonical_by_hand(context)].concat();
    Xaes256Gcm::new(&suite_key_by_hand(data_key, id).into())
        .decrypt(&long_nonce.into(), Payload { msg: &value[26..], aad: &aad })
        .ok()
}
