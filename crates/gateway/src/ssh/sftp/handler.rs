//! The requests.

use std::{collections::HashMap, sync::Arc};

use russh_sftp::{
    protocol::{
        Attrs, Data, File, FileAttributes, Handle, Name, OpenFlags, Packet, Status, StatusCode,
        Version,
    },
    server::{Handler, StatusReply},
};
use skerry_internal_api::{FileKind, FileStat, GuestApi, NodeError, User, WriteMode};

use super::{
    REQUEST_BYTES,
    names::{Logins, absolute, attributes, expanded, followed, status},
    programs::{run, set_attributes},
    reading::Reader,
    writing::Writer,
};

/// Files and directories open at the same time.
const HANDLES: usize = 64;
/// Entries in one answer.
const ENTRIES: usize = 100;
/// Of an unnamed file or directory.
const FILE_MODE: u32 = 0o666;
const DIRECTORY_MODE: u32 = 0o777;
const UMASK: u32 = 0o022;
/// Renames onto a file that is there (OpenSSH's `PROTOCOL`, section 4.3).
const POSIX_RENAME: &str = "posix-rename@openssh.com";
/// What `~` is (section 4.9).
const EXPAND_PATH: &str = "expand-path@openssh.com";

/// One client's view of the guest's files.
pub(super) struct Files {
    guest: Arc<dyn GuestApi>,
    logins: Logins,
    user: User,
    home: String,
    open: HashMap<String, Open>,
    opened: u64,
}

enum Open {
    Reader(Reader),
    Writer(Writer),
    /// What is left of a listing, last entry first.
    Directory(String, Vec<FileStat>),
}

type Outcome<T> = Result<T, StatusReply>;

fn told(error: NodeError) -> StatusReply {
    status(&error)
}

fn done(id: u32) -> Status {
    Status {
        id,
        status_code: StatusCode::Ok,
        error_message: "Ok".to_owned(),
        language_tag: "en-US".to_owned(),
    }
}

impl Files {
    pub(super) fn new(guest: Arc<dyn GuestApi>, logins: Logins, user: User, home: String) -> Self {
        Self { guest, logins, user, home, open: HashMap::new(), opened: 0 }
    }

    fn path(&self, path: &str) -> String {
        absolute(path, &self.home)
    }

    fn keep(&mut self, id: u32, open: Open) -> Handle {
        self.opened += 1;
        let handle = self.opened.to_string();
        self.open.insert(handle.clone(), open);
        Handle { id, handle }
    }

    fn check_room(&self) -> Outcome<()> {
        if self.open.len() < HANDLES {
            return Ok(());
        }
        Err(StatusCode::Failure.with_message("too many files are open"))
    }

    fn opened(&mut self, handle: &str) -> Outcome<&mut Open> {
        let none = || StatusCode::Failure.with_message("no such handle");
        self.open.get_mut(handle).ok_or_else(none)
    }

    async fn open_to_write(
        &mut self,
        path: String,
        flags: OpenFlags,
        asked: &FileAttributes,
    ) -> Outcome<Writer> {
        let there = match followed(&*self.guest, &path).await {
            Ok(stat) => Some(stat),
            Err(NodeError::NoSuchFile(_)) => None,
            Err(error) => return Err(status(&error)),
        };
        let is_new = there.is_none();
        if is_new && !flags.contains(OpenFlags::CREATE) {
            return Err(StatusCode::NoSuchFile.with_message(format!("{path}: no such file")));
        }
        if let Some(stat) = &there
            && stat.kind != FileKind::File
        {
            return Err(StatusCode::Failure.with_message(format!("{path}: not a regular file")));
        }
        let how = if flags.contains(OpenFlags::EXCLUDE) {
            WriteMode::CreateNew
        } else if flags.contains(OpenFlags::TRUNCATE) || is_new {
            WriteMode::Replace
        } else {
            WriteMode::Append
        };
        let at = match how {
            WriteMode::Append => there.as_ref().map_or(0, |stat| stat.size_bytes),
            WriteMode::Replace | WriteMode::CreateNew => 0,
        };
        // A file that is written over stays what it was and whose it was.
        let fresh_mode = asked.permissions.unwrap_or(FILE_MODE) & 0o7777 & !UMASK;
        let mode = there.as_ref().map_or(fresh_mode, |stat| stat.mode);
        let owner = there.as_ref().and_then(|stat| self.logins.of_uid(stat.uid));
        let owner = owner.unwrap_or_else(|| self.user.clone());
        Ok(Writer::new(Arc::clone(&self.guest), path, mode, how, owner, at))
    }

    async fn rename_onto(&mut self, from: &str, to: &str) -> Outcome<()> {
        self.guest.rename(&self.path(from), &self.path(to)).await.map_err(told)
    }

    async fn change(&mut self, path: &str, asked: &FileAttributes) -> Outcome<()> {
        set_attributes(&*self.guest, &self.user, path, asked).await
    }
}

impl Handler for Files {
    type Error = StatusReply;

    fn unimplemented(&self) -> StatusReply {
        StatusCode::OpUnsupported.into()
    }

    async fn init(&mut self, _: u32, _: HashMap<String, String>) -> Outcome<Version> {
        let mut version = Version::new();
        for extension in [POSIX_RENAME, EXPAND_PATH] {
            version.extensions.insert(extension.to_owned(), "1".to_owned());
        }
        Ok(version)
    }

    async fn open(
        &mut self,
        id: u32,
        filename: String,
        pflags: OpenFlags,
        attrs: FileAttributes,
    ) -> Outcome<Handle> {
        self.check_room()?;
        let path = self.path(&filename);
        let open = if pflags.contains(OpenFlags::WRITE) || pflags.contains(OpenFlags::APPEND) {
            Open::Writer(self.open_to_write(path, pflags, &attrs).await?)
        } else {
            let stat = followed(&*self.guest, &path).await.map_err(told)?;
            if stat.kind != FileKind::File {
                return Err(StatusCode::Failure.with_message(format!("{path}: not a regular file")));
            }
            Open::Reader(Reader::new(path))
        };
        Ok(self.keep(id, open))
    }

    async fn close(&mut self, id: u32, handle: String) -> Outcome<Status> {
        self.opened(&handle)?;
        if let Some(Open::Writer(writer)) = self.open.remove(&handle) {
            let path = writer.path.clone();
            let asked = writer.close().await?;
            self.change(&path, &asked).await?;
        }
        Ok(done(id))
    }

    async fn read(&mut self, id: u32, handle: String, offset: u64, len: u32) -> Outcome<Data> {
        let guest = Arc::clone(&self.guest);
        let Open::Reader(reader) = self.opened(&handle)? else {
            return Err(StatusCode::Failure.with_message("not open for reading"));
        };
        // The answer has to fit what a client takes, with some room for its head.
        let length = len.min(REQUEST_BYTES - 1024) as usize;
        let data = reader.read(&*guest, offset, length).await.map_err(told)?;
        if data.is_empty() && length > 0 {
            return Err(StatusCode::Eof.into());
        }
        Ok(Data { id, data })
    }

    async fn write(
        &mut self,
        id: u32,
        handle: String,
        offset: u64,
        data: Vec<u8>,
    ) -> Outcome<Status> {
        let Open::Writer(writer) = self.opened(&handle)? else {
            return Err(StatusCode::Failure.with_message("not open for writing"));
        };
        writer.write(offset, data).await?;
        Ok(done(id))
    }

    async fn lstat(&mut self, id: u32, path: String) -> Outcome<Attrs> {
        let stat = self.guest.stat(&self.path(&path)).await.map_err(told)?;
        Ok(Attrs { id, attrs: attributes(&stat) })
    }

    async fn stat(&mut self, id: u32, path: String) -> Outcome<Attrs> {
        let stat = followed(&*self.guest, &self.path(&path)).await.map_err(told)?;
        Ok(Attrs { id, attrs: attributes(&stat) })
    }

    async fn fstat(&mut self, id: u32, handle: String) -> Outcome<Attrs> {
        let path = match self.opened(&handle)? {
            Open::Reader(reader) => reader.path.clone(),
            Open::Writer(writer) => writer.path.clone(),
            Open::Directory(path, _) => path.clone(),
        };
        self.stat(id, path).await
    }

    async fn setstat(&mut self, id: u32, path: String, attrs: FileAttributes) -> Outcome<Status> {
        let path = self.path(&path);
        self.change(&path, &attrs).await?;
        Ok(done(id))
    }

    async fn fsetstat(
        &mut self,
        id: u32,
        handle: String,
        attrs: FileAttributes,
    ) -> Outcome<Status> {
        let path = match self.opened(&handle)? {
            Open::Reader(reader) => reader.path.clone(),
            Open::Directory(path, _) => path.clone(),
            Open::Writer(writer) => {
                let later = &mut writer.attributes;
                later.size = attrs.size.or(later.size);
                later.uid = attrs.uid.or(later.uid);
                later.gid = attrs.gid.or(later.gid);
                later.permissions = attrs.permissions.or(later.permissions);
                later.atime = attrs.atime.or(later.atime);
                later.mtime = attrs.mtime.or(later.mtime);
                return Ok(done(id));
            }
        };
        self.change(&path, &attrs).await?;
        Ok(done(id))
    }

    async fn opendir(&mut self, id: u32, path: String) -> Outcome<Handle> {
        self.check_room()?;
        let path = self.path(&path);
        let target = followed(&*self.guest, &path).await.map_err(told)?;
        let mut entries = self.guest.list_dir(&target.path).await.map_err(told)?;
        entries.reverse();
        Ok(self.keep(id, Open::Directory(path, entries)))
    }

    async fn readdir(&mut self, id: u32, handle: String) -> Outcome<Name> {
        let Open::Directory(_, entries) = self.opened(&handle)? else {
            return Err(StatusCode::Failure.with_message("not a directory"));
        };
        let rest = entries.split_off(entries.len().saturating_sub(ENTRIES));
        if rest.is_empty() {
            return Err(StatusCode::Eof.into());
        }
        let file = |stat: &FileStat| File::new(stat.name.clone(), attributes(stat));
        Ok(Name { id, files: rest.iter().rev().map(file).collect() })
    }

    async fn remove(&mut self, id: u32, filename: String) -> Outcome<Status> {
        let path = self.path(&filename);
        let stat = self.guest.stat(&path).await.map_err(told)?;
        if stat.kind == FileKind::Directory {
            return Err(StatusCode::Failure.with_message(format!("{path}: is a directory")));
        }
        self.guest.remove(&path).await.map_err(told)?;
        Ok(done(id))
    }

    async fn mkdir(&mut self, id: u32, path: String, attrs: FileAttributes) -> Outcome<Status> {
        let path = self.path(&path);
        match self.guest.stat(&path).await {
            Ok(_) => return Err(StatusCode::Failure.with_message(format!("{path}: file exists"))),
            Err(NodeError::NoSuchFile(_)) => {}
            Err(error) => return Err(status(&error)),
        }
        let mode = attrs.permissions.unwrap_or(DIRECTORY_MODE) & 0o7777 & !UMASK;
        self.guest.make_dir(&path, mode, self.user.clone()).await.map_err(told)?;
        Ok(done(id))
    }

    async fn rmdir(&mut self, id: u32, path: String) -> Outcome<Status> {
        run(&*self.guest, &self.user, &["rmdir", "--", &self.path(&path)]).await?;
        Ok(done(id))
    }

    async fn realpath(&mut self, id: u32, path: String) -> Outcome<Name> {
        Ok(Name { id, files: vec![File::dummy(self.path(&path))] })
    }

    async fn rename(&mut self, id: u32, oldpath: String, newpath: String) -> Outcome<Status> {
        match self.guest.stat(&self.path(&newpath)).await {
            Ok(_) => return Err(StatusCode::Failure.with_message("the new name is taken")),
            Err(NodeError::NoSuchFile(_)) => {}
            Err(error) => return Err(status(&error)),
        }
        self.rename_onto(&oldpath, &newpath).await?;
        Ok(done(id))
    }

    async fn readlink(&mut self, id: u32, path: String) -> Outcome<Name> {
        let stat = self.guest.stat(&self.path(&path)).await.map_err(told)?;
        let none = || StatusCode::Failure.with_message("not a symbolic link");
        let target = stat.link_target.ok_or_else(none)?;
        Ok(Name { id, files: vec![File::dummy(target)] })
    }

    /// OpenSSH sends what the link points to first, against the draft, and so does everybody since.
    async fn symlink(&mut self, id: u32, linkpath: String, targetpath: String) -> Outcome<Status> {
        let (points_to, link) = (linkpath, self.path(&targetpath));
        run(&*self.guest, &self.user, &["ln", "-s", "-T", "--", &points_to, &link]).await?;
        Ok(done(id))
    }

    async fn extended(&mut self, id: u32, request: String, data: Vec<u8>) -> Outcome<Packet> {
        let mut words = data.as_slice();
        match request.as_str() {
            POSIX_RENAME => {
                let (from, to) = (word(&mut words)?, word(&mut words)?);
                self.rename_onto(&from, &to).await?;
                Ok(done(id).into())
            }
            EXPAND_PATH => {
                let path = word(&mut words)?;
                let none =
                    || StatusCode::Failure.with_message("another user's home is not looked up");
                let path = expanded(&path, &self.home).ok_or_else(none)?;
                Ok(Name { id, files: vec![File::dummy(path)] }.into())
            }
            _ => Err(StatusCode::OpUnsupported.into()),
        }
    }
}

/// Takes a string in the protocol's form off the front: four bytes of length, then that many.
fn word(bytes: &mut &[u8]) -> Outcome<String> {
    let bad = || StatusReply::from(StatusCode::BadMessage);
    let (length, rest) = bytes.split_first_chunk::<4>().ok_or_else(bad)?;
    let length = u32::from_be_bytes(*length) as usize;
    let (text, rest) = rest.split_at_checked(length).ok_or_else(bad)?;
    *bytes = rest;
    String::from_utf8(text.to_vec()).map_err(|_| bad())
}
