-- From 0.1.0 to 0.2.0: what does not follow from the files of sql/. See README.md here.

ALTER TABLE fieldcrypt.encryption_keys DROP CONSTRAINT encryption_keys_purpose_check;
ALTER TABLE fieldcrypt.encryption_keys ADD CONSTRAINT encryption_keys_purpose_check CHECK (purpose IN ('field', 'loose', 'search', 'audit'));

-- what follows from sql/ stands here
