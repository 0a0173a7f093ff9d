//! What has to be the same for a saved machine to stand for a booted one.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use skerry_model::{Shape, spec::ImageDigest};

use crate::layout::hex;

/// Raised when a template of an earlier version of this program must not be used any more.
const GENERATION: &str = "1";
const DIGITS: usize = 32;

/// Everything a template was made from, in short. Two machines of one key are the same to a tenant.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct TemplateKey(String);

/// Everything a template is made from.
#[derive(Clone, Debug)]
pub(crate) struct Ingredients<'a> {
    /// The image at the bottom of the disk.
    pub image: &'a ImageDigest,
    /// The kernel and the initial file system, which holds the agent.
    pub boot: &'a ImageDigest,
    /// What the hypervisor's saved states depend on ([`skerry_vmm::Vmm::fingerprint`]).
    pub fingerprint: &'a str,
    /// The size, the disk's included: a guest does not see its disk grow while it is saved.
    pub shape: &'a Shape,
}

impl TemplateKey {
    pub fn of(ingredients: &Ingredients<'_>) -> Self {
        let Ingredients { image, boot, fingerprint, shape } = ingredients;
        let Shape { vcpu_count, memory_mib, disk_mib, cpu_kind } = shape;
        let mut hasher = Sha256::new();
        for part in [
            GENERATION,
            &image.0,
            &boot.0,
            fingerprint,
            &vcpu_count.to_string(),
            &memory_mib.to_string(),
            &disk_mib.to_string(),
            &format!("{cpu_kind:?}"),
        ] {
            // With its length, so that no two lists of parts run together to the same text.
            hasher.update(part.len().to_be_bytes());
            hasher.update(part.as_bytes());
        }
        Self(hex(&hasher.finalize()[..DIGITS / 2]))
    }

    #[cfg(test)]
    pub fn for_tests(number: u8) -> Self {
        Self(format!("{number:032x}"))
    }
}

impl fmt::Display for TemplateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The text is no key.
#[derive(Debug, thiserror::Error)]
#[error("not {DIGITS} lower-case hexadecimal digits")]
pub(crate) struct NoKey;

impl FromStr for TemplateKey {
    type Err = NoKey;

    fn from_str(text: &str) -> Result<Self, NoKey> {
        let is_digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        let is_key = text.len() == DIGITS && text.bytes().all(is_digit);
        is_key.then(|| Self(text.to_owned())).ok_or(NoKey)
    }
}

impl TryFrom<String> for TemplateKey {
    type Error = NoKey;

    fn try_from(text: String) -> Result<Self, NoKey> {
        text.parse()
    }
}

impl From<TemplateKey> for String {
    fn from(key: TemplateKey) -> Self {
        key.0
    }
}

#[cfg(test)]
mod tests {
    use skerry_model::{DiskMib, MemMib, VcpuCount, spec::CpuKind};

    use super::*;

    #[test]
    fn whatever_differs_gives_another_key() {
        let shape = Shape {
            vcpu_count: VcpuCount(1),
            memory_mib: MemMib(512),
            disk_mib: DiskMib(1024),
            cpu_kind: CpuKind::Shared,
        };
        let shapes = [
            shape,
            Shape { vcpu_count: VcpuCount(2), ..shape },
            Shape { memory_mib: MemMib(513), ..shape },
            Shape { disk_mib: DiskMib(1025), ..shape },
            Shape { cpu_kind: CpuKind::Performance, ..shape },
        ];
        let digests = ["a", "b"].map(|text| ImageDigest(text.to_owned()));
        let mut keys = std::collections::BTreeSet::new();
        let mut count = 0;
        for shape in &shapes {
            for image in &digests {
                for boot in &digests {
                    for fingerprint in ["f", "g"] {
                        count += 1;
                        keys.insert(TemplateKey::of(&Ingredients {
                            image,
                            boot,
                            fingerprint,
                            shape,
                        }));
                    }
                }
            }
        }
        assert_eq!(keys.len(), count);
    }

    #[test]
    fn a_key_is_its_digits_and_nothing_else() {
        let key = TemplateKey::for_tests(7);
        assert_eq!(key.to_string().parse::<TemplateKey>().unwrap(), key);
        for text in ["", "../../etc", "0000000000000000000000000000000G", "0"] {
            assert!(text.parse::<TemplateKey>().is_err(), "{text}");
        }
    }
}
