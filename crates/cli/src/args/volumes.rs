//! Volumes.

use std::str::FromStr;

use clap::{Args, Subcommand};

use super::{Mebibytes, VolumeFileCommand, WaitArgs};

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
    /// Make a volume and its file system larger; volumes do not shrink
    Grow {
        /// Name or id
        #[arg(value_name = "VOLUME")]
        volume: String,
        /// How large it is to be: 512 or 512M, 10G, 1T
        #[arg(value_name = "SIZE")]
        size: Mebibytes,
    },
    /// Write, read, list and remove files of volumes, whether a workspace has them or not
    File {
        /// What to do
        #[command(subcommand)]
        command: VolumeFileCommand,
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
        #[arg(value_name = "VOLUME[@CHECKPOINT]:PATH[:ro]")]
        mount: MountArg,
    },
    /// Make, list and delete checkpoints: what a volume was at a moment, kept unchanged
    Checkpoint {
        /// What to do
        #[command(subcommand)]
        command: CheckpointCommand,
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

/// `skerry volume checkpoint`.
#[derive(Debug, Subcommand)]
pub enum CheckpointCommand {
    /// Make a checkpoint, also of a volume that a workspace writes
    Create {
        /// The volume: name or id
        #[arg(value_name = "VOLUME")]
        volume: String,

        /// A name for the checkpoint [default: the time]
        #[arg(long, value_name = "CHECKPOINT")]
        name: Option<String>,

        #[command(flatten)]
        #[allow(missing_docs)]
        wait: WaitArgs,
    },
    /// List a volume's checkpoints
    #[command(visible_alias = "list")]
    Ls {
        /// The volume: name or id
        #[arg(value_name = "VOLUME")]
        volume: String,
    },
    /// Delete checkpoints; the volume stays as it is
    Rm {
        /// The volume: name or id
        #[arg(value_name = "VOLUME")]
        volume: String,

        /// Names (the newest ready one of each) or ids
        #[arg(value_name = "CHECKPOINT", required = true)]
        checkpoints: Vec<String>,

        #[command(flatten)]
        #[allow(missing_docs)]
        wait: WaitArgs,
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

/// A volume and where a workspace has it: `VOLUME[@CHECKPOINT]:PATH[:ro|:rw]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountArg {
    /// Name or id.
    pub volume: String,
    /// Name or id of one of its checkpoints, or `latest`.
    pub checkpoint: Option<String>,
    /// Absolute path in the workspace.
    pub path: String,
    /// The word of the API.
    pub mode: &'static str,
}

impl FromStr for MountArg {
    type Err = String;

    /// The path begins at the first `:/` and the checkpoint's name at the last `@` before it: a volume's
    /// name may have colons of its own; one with an `@` is named by its id.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let Some((volume, path)) = text.split_once(":/") else {
            return Err("is not VOLUME:PATH with an absolute path, such as data:/srv".to_owned());
        };
        let (volume, checkpoint) = match volume.rsplit_once('@') {
            Some((volume, checkpoint)) => (volume, Some(checkpoint.to_owned())),
            None => (volume, None),
        };
        if volume.is_empty() || checkpoint.as_deref() == Some("") {
            return Err("the name of the volume or the checkpoint is missing".to_owned());
        }
        let otherwise = if checkpoint.is_some() { "ro" } else { "rw" };
        let (path, mode) = match path.rsplit_once(':') {
            Some((path, "ro")) => (path, "ro"),
            Some((path, "rw")) => (path, "rw"),
            Some(_) | None => (path, otherwise),
        };
        Ok(Self { volume: volume.to_owned(), checkpoint, path: format!("/{path}"), mode })
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
            read.map(|MountArg { volume, checkpoint, path, mode }| {
                let at = checkpoint.map(|name| format!("@{name}")).unwrap_or_default();
                format!("{volume}{at} {path} {mode}")
            })
        };
        for (text, expected) in [
            ("data:/srv", "data /srv rw"),
            ("data:/srv:ro", "data /srv ro"),
            ("data:/srv:rw", "data /srv rw"),
            ("data@latest:/srv", "data@latest /srv ro"),
            ("data@1:/srv:rw", "data@1 /srv rw"),
            ("a:b:/srv/x:y", "a:b /srv/x:y rw"),
            ("a b:/srv/x:y:ro", "a b /srv/x:y ro"),
        ] {
            assert_eq!(read(text).as_deref(), Ok(expected), "{text}");
        }
        for bad in ["", "data", "data:srv", ":/srv", "/srv", "@x:/srv", "x@:/srv"] {
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
