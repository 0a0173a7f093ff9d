//! Files of volumes.

use std::{path::PathBuf, str::FromStr};

use clap::Subcommand;

/// `skerry volume file`.
#[derive(Debug, Subcommand)]
pub enum VolumeFileCommand {
    /// Write a file, replacing the one that is there
    Put {
        /// A file here; - for standard input
        #[arg(value_name = "FILE")]
        from: PathBuf,
        /// Where in the volume; missing directories are made
        #[arg(value_name = "VOLUME:PATH")]
        to: VolumePlace,
        /// Refuse to replace a file
        #[arg(long)]
        new: bool,
    },
    /// Read a file
    Get {
        /// Which file of the volume
        #[arg(value_name = "VOLUME:PATH")]
        from: VolumePlace,
        /// Where to; a directory gets a file of the same name, and - is standard output
        #[arg(value_name = "FILE", default_value = ".")]
        to: PathBuf,
    },
    /// List a directory
    #[command(visible_alias = "list")]
    Ls {
        /// Which one; without a path, the top
        #[arg(value_name = "VOLUME[:PATH]")]
        place: VolumePlace,
        /// Everything below it
        #[arg(long, short)]
        recursive: bool,
    },
    /// Remove files and empty directories
    Rm {
        /// Which
        #[arg(value_name = "VOLUME:PATH", required = true)]
        places: Vec<VolumePlace>,
        /// Directories with everything in them, too
        #[arg(long, short)]
        recursive: bool,
    },
}

/// A place in a volume: `VOLUME[:PATH]`, the path with or without a slash in front.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumePlace {
    /// Name or id.
    pub volume: String,
    /// Below its top; empty for the top itself.
    pub path: String,
}

impl FromStr for VolumePlace {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (volume, path) = text.split_once(':').unwrap_or((text, ""));
        if volume.is_empty() {
            return Err("is not VOLUME:PATH, such as data:/models/a".to_owned());
        }
        let path = path.trim_matches('/').to_owned();
        Ok(Self { volume: volume.to_owned(), path })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_a_volume_and_a_path() {
        for (text, volume, path) in
            [("data:/a/b", "data", "a/b"), ("data:a", "data", "a"), ("data", "data", "")]
        {
            let wanted = VolumePlace { volume: volume.to_owned(), path: path.to_owned() };
            assert_eq!(text.parse(), Ok(wanted));
        }
        assert!(":/a".parse::<VolumePlace>().is_err());
    }
}
