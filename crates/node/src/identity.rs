//! Who a guest is: its machine id and its MAC address, drawn once for each workspace and kept with
//! its disk.

use std::{fs, io};

use sha2::{Digest, Sha256};

use crate::{
    Error, NodeEnvironment,
    layout::{VmPaths, hex, write_durably},
};

/// A guest's identity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct GuestIdentity {
    /// 32 lower-case hexadecimal digits, as in `/etc/machine-id` (machine-id(5)).
    pub machine_id: String,
    /// A locally administered unicast address.
    pub mac: [u8; 6],
}

impl GuestIdentity {
    /// The identity kept in the VM's directory; made and kept when there is none yet.
    pub fn ensure(paths: &VmPaths, environment: &NodeEnvironment) -> Result<Self, Error> {
        match fs::read_to_string(&paths.machine_id) {
            Ok(text) if is_machine_id(text.trim()) => Ok(Self::of(text.trim())),
            Ok(_) => {
                tracing::warn!(file = %paths.machine_id.display(), "damaged machine id replaced");
                Self::make(paths, environment)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Self::make(paths, environment),
            Err(error) => Err(Error::path("reading", &paths.machine_id)(error)),
        }
    }

    fn make(paths: &VmPaths, environment: &NodeEnvironment) -> Result<Self, Error> {
        let machine_id = hex(&environment.random::<16>());
        write_durably(&paths.machine_id, format!("{machine_id}\n").as_bytes())?;
        Ok(Self::of(&machine_id))
    }

    fn of(machine_id: &str) -> Self {
        // Hashed, so that the address on the wire does not give the machine id away.
        let digest = Sha256::digest([b"mac\0", machine_id.as_bytes()].concat());
        let mut mac = [0_u8; 6];
        mac.copy_from_slice(&digest[..6]);
        // IEEE 802: bit 0 of the first octet is "group", bit 1 is "locally administered".
        mac[0] = (mac[0] & 0b1111_1100) | 0b0000_0010;
        Self { machine_id: machine_id.to_owned(), mac }
    }
}

fn is_machine_id(text: &str) -> bool {
    text.len() == 32 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mac_address_is_unicast_locally_administered_and_stable() {
        let one = GuestIdentity::of(&"ab".repeat(16));
        assert_eq!(one, GuestIdentity::of(&"ab".repeat(16)));
        assert_eq!(one.mac[0] & 0b11, 0b10);
        assert_ne!(one.mac, GuestIdentity::of(&"cd".repeat(16)).mac);
    }
}
