//! Volumes.

use std::str::FromStr;

use clap::{Args, Subcommand};

use super::{Mebibytes, WaitArgs};

/// `skerry volume`.
#[derive(Debug, Subcommand)]
pub enum VolumeCommand {
    /// Make a volume: a file system that outlives workspaces
    Create(VolumeCreateArgs),
    /// List volumes, and which workspaces have them
    #[command(visible_alias = "list")]
    Ls,
    /// Show one volume
    Get {
        /// Name or id
        #[arg(value_name = "VOLUME")]
        volume: String,
    },
    /// Give a volume another name
    Rename {
        /// Name or id
        #[arg(value_name = "VOLUME")]
        volume: String,
        /// The new name
        #[arg(value_name = "NEW-NAME")]
        name: String,
    },
    /// Delete volumes and all that is on them
    Rm {
        /// Names or ids
        #[arg(value_name = "VOLUME", required = true)]
        volumes: Vec<String>,

        #[command(flatten)]
        #[allow(missing_docs)]
        wait: WaitArgs,
    },
    /// Give a workspace a volume: at once if it runs, else at its next start
    Attach {
        /// The workspace: name, slug, or id in any API's form
        #[arg(value_name = "NAME")]
        workspace: String,
        /// Which volume and where in the workspace; :ro for reading only
        #[arg(value_name = "VOLUME:PATH[:ro]")]
        mount: MountArg,
    },
    /// Take volumes from a workspace; what was written to them is on them
    Detach {
        /// The workspace: name, slug, or id in any API's form
        #[arg(value_name = "NAME")]
        workspace: String,
        /// Names or ids
        #[arg(value_name = "VOLUME", required = true)]
        volumes: Vec<String>,
    },
}

/// `skerry volume create`.
#[derive(Debug, Args)]
pub struct VolumeCreateArgs {
    /// A name that no other volume of the account has
    #[arg(value_name = "NAME")]
    pub name: String,

    /// How large it is: 512 or 512M, 10G, 1T; only what is written takes room
    #[arg(long, value_name = "SIZE")]
    pub size: Mebibytes,

    #[command(flatten)]
    #[allow(missing_docs)]
    pub wait: WaitArgs,
}

/// A volume and where a workspace has it: `VOLUME:PATH[:ro|:rw]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountArg {
    /// Name or id.
    pub volume: String,
    /// Absolute path in the workspace.
    pub path: String,
    /// The word of the API.
    pub mode: &'static str,
}

impl FromStr for MountArg {
    type Err = String;

    /// The path begins at the first `:/`: a volume's name may have colons of its own.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let Some((volume, path)) = text.split_once(":/") else {
            return Err("is not VOLUME:PATH with an absolute path, such as data:/srv".to_owned());
        };
        if volume.is_empty() {
            return Err("the volume's name before the colon is missing".to_owned());
        }
        let (path, mode) = match path.rsplit_once(':') {
            Some((path, "ro")) => (path, "ro"),
            Some((path, "rw")) => (path, "rw"),
            Some(_) | None => (path, "rw"),
        };
        Ok(Self { volume: volume.to_owned(), path: format!("/{path}"), mode })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_mount_is_a_volume_a_path_and_a_mode() {
        let read = |text: &str| {
            let read = text.parse::<MountArg>();
            read.map(|mount| format!("{} {} {}", mount.volume, mount.path, mount.mode))
        };
        for (text, expected) in [
            ("data:/srv", "data /srv rw"),
            ("data:/srv:ro", "data /srv ro"),
            ("data:/srv:rw", "data /srv rw"),
            ("a:b:/srv/x:y", "a:b /srv/x:y rw"),
            ("a b:/srv/x:y:ro", "a b /srv/x:y ro"),
        ] {
            assert_eq!(read(text).as_deref(), Ok(expected), "{text}");
        }
        for bad in ["", "data", "data:srv", ":/srv", "/srv"] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn no_text_breaks_the_parser(text in ".{0,40}") {
            let _ = text.parse::<MountArg>();
        }
    }
}
