//! What comes before an entry and changes it: GNU's long names and POSIX's extended headers. Our own
//! reader: extended attributes hold any bytes, and the crate's splits its values at line ends.

use std::collections::BTreeMap;

use super::PullError;

const XATTR: &str = "SCHILY.xattr.";
/// In an inode's own space and one block, what ext4 holds of them with names and headers.
const MAX_XATTR_BYTES: usize = 3072;
const MAX_XATTR_NAME_BYTES: usize = 255;

/// What the next entry has beyond its header.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Extensions {
    pub path: Option<Vec<u8>>,
    pub link: Option<Vec<u8>>,
    pub size: Option<u64>,
    pub uid: Option<u64>,
    pub gid: Option<u64>,
    pub mtime: Option<u64>,
    pub xattrs: BTreeMap<String, Vec<u8>>,
}

impl Extensions {
    pub(super) fn add(&mut self, kind: tar::EntryType, content: Vec<u8>) -> Result<(), PullError> {
        if kind.is_gnu_longname() {
            self.path = Some(until_nul(content));
            return Ok(());
        }
        if kind.is_gnu_longlink() {
            self.link = Some(until_nul(content));
            return Ok(());
        }
        let wrong = || PullError::refused("an extended header is damaged");
        let mut rest = content.as_slice();
        while !rest.is_empty() {
            // `<length> <keyword>=<value>\n`, the length being that of all of it.
            let space = rest.iter().position(|byte| *byte == b' ').ok_or_else(wrong)?;
            let length = std::str::from_utf8(&rest[..space]).ok();
            let length: usize = length.and_then(|text| text.parse().ok()).ok_or_else(wrong)?;
            let record = rest.get(space + 1..length).ok_or_else(wrong)?;
            let (b'\n', record) = record.split_last().ok_or_else(wrong)? else {
                return Err(wrong());
            };
            let equals = record.iter().position(|byte| *byte == b'=').ok_or_else(wrong)?;
            let keyword = std::str::from_utf8(&record[..equals]).map_err(|_| wrong())?;
            self.record(keyword, &record[equals + 1..])?;
            rest = &rest[length..];
        }
        Ok(())
    }

    fn record(&mut self, keyword: &str, value: &[u8]) -> Result<(), PullError> {
        let number = || {
            // Times may have a fraction; the file system of an image need not.
            let whole = value.split(|byte| *byte == b'.').next().unwrap_or_default();
            let text = std::str::from_utf8(whole).ok();
            text.and_then(|text| text.parse::<u64>().ok())
                .ok_or_else(|| PullError::refused("an extended header is damaged"))
        };
        match keyword {
            "path" => self.path = Some(value.to_vec()),
            "linkpath" => self.link = Some(value.to_vec()),
            "size" => self.size = Some(number()?),
            "uid" => self.uid = Some(number()?),
            "gid" => self.gid = Some(number()?),
            // A time before 1970 becomes 1970.
            "mtime" => self.mtime = Some(if value.starts_with(b"-") { 0 } else { number()? }),
            "GNU.sparse.major" | "GNU.sparse.map" | "GNU.sparse.size" => {
                return Err(PullError::refused("it has a sparse file, which no layer has"));
            }
            _other => {
                if let Some(name) = keyword.strip_prefix(XATTR) {
                    return self.xattr(name, value);
                }
                // Names of owners, access times, comments: nothing an image is made of.
            }
        }
        Ok(())
    }

    /// Those that mean the same in every kernel. Labels of the builder's own security module
    /// (`security.selinux`) and of its storage (`trusted.overlay`) say nothing about the image.
    fn xattr(&mut self, name: &str, value: &[u8]) -> Result<(), PullError> {
        if name != "security.capability" && !name.starts_with("user.") {
            return Ok(());
        }
        let plain =
            name.len() <= MAX_XATTR_NAME_BYTES && name.bytes().all(|b| b.is_ascii_graphic());
        if !plain || name.contains('=') {
            return Err(PullError::refused("the name of an extended attribute is not usable"));
        }
        self.xattrs.insert(name.to_owned(), value.to_vec());
        let total: usize =
            self.xattrs.iter().map(|(name, value)| name.len() + value.len() + 20).sum();
        if total > MAX_XATTR_BYTES {
            return Err(PullError::refused("the extended attributes of a file are too long"));
        }
        Ok(())
    }
}

fn until_nul(mut text: Vec<u8>) -> Vec<u8> {
    let end = text.iter().position(|byte| *byte == 0).unwrap_or(text.len());
    text.truncate(end);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(content: &[u8]) -> Result<Extensions, PullError> {
        let mut extensions = Extensions::default();
        extensions.add(tar::EntryType::XHeader, content.to_vec())?;
        Ok(extensions)
    }

    #[test]
    fn an_attribute_may_hold_line_ends_and_equals_signs() {
        let read = read(b"28 SCHILY.xattr.user.a=b\n=c\n12 path=x/y\n").unwrap();
        assert_eq!(read.xattrs["user.a"], b"b\n=c");
        assert_eq!(read.path.as_deref(), Some(b"x/y".as_slice()));
    }

    #[test]
    fn damaged_headers_are_refused() {
        for content in ["5", "x path=a\n", "999 path=a\n", "10 path=abc", "7 path=\n", "0 a=b\n"] {
            assert!(read(content.as_bytes()).is_err(), "{content}");
        }
    }

    #[test]
    fn attributes_are_bounded_and_labels_of_the_builder_are_left() {
        let record = |name: &str, length: usize| {
            let rest = format!(" SCHILY.xattr.{name}={}\n", "v".repeat(length));
            let mut total = rest.len() + 1;
            while total != rest.len() + total.to_string().len() {
                total += 1;
            }
            format!("{total}{rest}")
        };
        assert!(read(record("user.big", 4000).as_bytes()).is_err());
        let kept = read((record("security.selinux", 9) + &record("user.a", 9)).as_bytes()).unwrap();
        assert_eq!(kept.xattrs.keys().collect::<Vec<_>>(), ["user.a"]);
    }

    proptest::proptest! {
        #[test]
        fn no_header_makes_the_reader_panic(
            content in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200),
        ) {
            let _ = read(&content);
        }
    }
}
