//! The keys that an event names.

use fieldcrypt_envelope::KeyId;

/// Keys that an event names; that there were more is said in words.
const KEYS_NAMED: usize = 32;

/// Some keys, the first of them by name.
#[derive(Default, Clone)]
pub struct Keys {
    pub named: Vec<i64>,
    are_more: bool,
}

impl Keys {
    pub fn add(&mut self, key_id: KeyId) {
        let key_id = key_id.as_i64();
        if self.named.last() == Some(&key_id) || self.named.contains(&key_id) {
            return;
        }
        if self.named.len() < KEYS_NAMED {
            self.named.push(key_id);
        } else {
            self.are_more = true;
        }
    }

    pub fn in_words(&self) -> Option<String> {
        self.are_more.then(|| format!("more keys were used than the {KEYS_NAMED} listed"))
    }
}
