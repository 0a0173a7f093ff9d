//! A seal for tests: no protection from anybody, but as strict as a real one.

use skerry_node::{Seal, SealError};

/// One byte of key seals; others open.
#[derive(Clone, Debug)]
pub struct TestSeal {
    pub key: u8,
    pub older: Vec<u8>,
}

impl Default for TestSeal {
    fn default() -> Self {
        Self { key: 0xa5, older: Vec::new() }
    }
}

impl Seal for TestSeal {
    fn seal(&self, owner: &str, plain: &[u8]) -> Result<Vec<u8>, SealError> {
        let text = [owner.as_bytes(), b"\0", plain].concat();
        let sealed = text.iter().map(|byte| byte ^ self.key);
        Ok(std::iter::once(self.key).chain(sealed).collect())
    }

    fn open(&self, owner: &str, sealed: &[u8]) -> Result<Vec<u8>, SealError> {
        let (key, rest) = sealed.split_first().ok_or(SealError::Damaged)?;
        if *key != self.key && !self.older.contains(key) {
            return Err(SealError::NoSuchKey(format!("there is no key {key}")));
        }
        let text: Vec<u8> = rest.iter().map(|byte| byte ^ key).collect();
        let owner = [owner.as_bytes(), b"\0"].concat();
        Ok(text.strip_prefix(owner.as_slice()).ok_or(SealError::Damaged)?.to_vec())
    }

    fn is_current(&self, sealed: &[u8]) -> bool {
        sealed.first() == Some(&self.key)
    }
}
