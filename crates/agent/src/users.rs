//! Who is who in the guest: `/etc/passwd` and `/etc/group`, read by ourselves because a static
//! program has no name service. Every command needs them, so they are kept until they change.

use std::{
    fs::{self, File},
    io::{self, Read},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use nix::{
    time::ClockId,
    unistd::{getegid, geteuid},
};
use skerry_agent_protocol::message::{FailureCode, User};

use crate::AgentError;

/// More than this of either file is not read.
const FILE_MAX: u64 = 1024 * 1024;
/// Linux's own limit is 65,536; a login with more groups than this loses the rest.
const GROUPS_MAX: usize = 256;

/// A login.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Account {
    pub(crate) name: String,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) groups: Vec<u32>,
    pub(crate) home: PathBuf,
    pub(crate) shell: String,
    /// Whether a process has to change its ids to be this account, and a file its owner.
    pub(crate) switch: bool,
}

impl Account {
    /// Whoever runs this process, at home in `home`.
    pub(crate) fn current(home: &Path) -> Self {
        Self {
            name: String::from(if geteuid().is_root() { "root" } else { "user" }),
            uid: geteuid().as_raw(),
            gid: getegid().as_raw(),
            groups: Vec::new(),
            home: home.to_owned(),
            shell: String::from("/bin/sh"),
            switch: false,
        }
    }
}

/// The accounts of the guest, as they are at every look.
#[derive(Debug)]
pub(crate) struct AccountFiles {
    passwd: PathBuf,
    group: PathBuf,
    known: Mutex<Option<(Version, Arc<Accounts>)>>,
}

/// What changes with a file, so that an equal one need not be read again.
#[derive(Debug, PartialEq, Eq)]
struct Version([Option<FileVersion>; 2]);

#[derive(Debug, PartialEq, Eq)]
struct FileVersion {
    device: u64,
    inode: u64,
    size: u64,
    /// Seconds and nanoseconds of the last change to anything about it.
    changed: (i64, i64),
}

/// The kernel stamps changes with a clock that ticks some hundred times a second: what was changed just
/// now may be changed once more under the same stamp.
const SETTLED_SECONDS: i64 = 2;

impl AccountFiles {
    /// Those of the guest itself.
    pub(crate) fn of_the_guest() -> Self {
        Self::new(PathBuf::from("/etc/passwd"), PathBuf::from("/etc/group"))
    }

    fn new(passwd: PathBuf, group: PathBuf) -> Self {
        Self { passwd, group, known: Mutex::default() }
    }

    /// The accounts now. Blocks.
    pub(crate) fn load(&self) -> Result<Arc<Accounts>, AgentError> {
        let version = Version([version(&self.passwd)?, version(&self.group)?]);
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((of, accounts)) = &*known
            && *of == version
        {
            return Ok(Arc::clone(accounts));
        }
        let accounts =
            Arc::new(Accounts { passwd: read(&self.passwd)?, group: read(&self.group)? });
        *known = version.is_settled().then(|| (version, Arc::clone(&accounts)));
        Ok(accounts)
    }
}

impl Version {
    fn is_settled(&self) -> bool {
        let Ok(now) = ClockId::CLOCK_REALTIME.now() else { return false };
        self.0.iter().flatten().all(|file| file.changed.0 + SETTLED_SECONDS < now.tv_sec())
    }
}

fn version(path: &Path) -> Result<Option<FileVersion>, AgentError> {
    match fs::metadata(path) {
        Ok(metadata) => Ok(Some(FileVersion {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.len(),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        })),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(AgentError::from_io(&path.to_string_lossy(), &error)),
    }
}

/// The two files' text; that of a missing one is empty.
#[derive(Debug)]
pub(crate) struct Accounts {
    passwd: String,
    group: String,
}

impl Accounts {
    pub(crate) fn find(&self, user: &User) -> Result<Account, AgentError> {
        let name = match user {
            User::Root => "root",
            User::Named(name) => name,
        };
        match (self.passwd.lines().find_map(|line| parse_login(line, name)), user) {
            (Some(account), _) => Ok(self.with_groups(account)),
            // A tree without logins still has uid 0.
            (None, User::Root) => Ok(Account {
                name: String::from("root"),
                uid: 0,
                gid: 0,
                groups: vec![0],
                home: PathBuf::from("/root"),
                shell: String::from("/bin/sh"),
                switch: true,
            }),
            (None, User::Named(name)) => Err(AgentError::refused(
                FailureCode::NoSuchUser,
                format!("there is no user {name:?} in the guest"),
            )),
        }
    }

    fn with_groups(&self, mut account: Account) -> Account {
        account.groups.push(account.gid);
        for line in self.group.lines() {
            let mut fields = line.split(':').skip(2);
            let (Some(gid), Some(members)) = (fields.next(), fields.next()) else { continue };
            let Ok(gid) = gid.parse::<u32>() else { continue };
            if members.split(',').any(|member| member == account.name)
                && !account.groups.contains(&gid)
                && account.groups.len() < GROUPS_MAX
            {
                account.groups.push(gid);
            }
        }
        account
    }
}

fn parse_login(line: &str, name: &str) -> Option<Account> {
    let mut fields = line.split(':');
    if fields.next()? != name || name.is_empty() {
        return None;
    }
    let uid = fields.nth(1)?.parse().ok()?;
    let gid = fields.next()?.parse().ok()?;
    let home = fields.nth(1)?;
    let shell = fields.next().unwrap_or_default();
    Some(Account {
        name: name.to_owned(),
        uid,
        gid,
        groups: Vec::new(),
        home: PathBuf::from(if home.is_empty() { "/" } else { home }),
        shell: String::from(if shell.is_empty() { "/bin/sh" } else { shell }),
        switch: true,
    })
}

fn read(path: &Path) -> Result<String, AgentError> {
    let mut bytes = Vec::new();
    match File::open(path) {
        Ok(file) => {
            file.take(FILE_MAX)
                .read_to_end(&mut bytes)
                .map_err(|error| AgentError::from_io(&path.to_string_lossy(), &error))?;
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(AgentError::from_io(&path.to_string_lossy(), &error)),
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::*;

    fn login(name: &str) -> String {
        format!("{name}:x:7:8::/home/{name}:/bin/sh\n")
    }

    #[test]
    fn a_change_of_the_files_is_seen_at_the_next_look() {
        let dir = tempfile::tempdir().unwrap();
        let (passwd, group) = (dir.path().join("passwd"), dir.path().join("group"));
        let files = AccountFiles::new(passwd.clone(), group);
        let knows = |name: &str| files.load().unwrap().find(&User::Named(name.into())).is_ok();
        assert!(!knows("one"));
        // In place and of the same length, within one tick of the clock.
        for name in ["one", "two", "six"] {
            fs::write(&passwd, login(name)).unwrap();
            assert!(knows(name));
        }
        fs::write(dir.path().join("new"), login("ten")).unwrap();
        fs::rename(dir.path().join("new"), &passwd).unwrap();
        assert!(knows("ten") && !knows("six"));
    }

    #[test]
    fn files_that_have_not_changed_are_not_read_again() {
        let passwd = PathBuf::from("/etc/passwd");
        let files = AccountFiles::new(passwd.clone(), PathBuf::from("/missing"));
        let changed = fs::metadata(&passwd).unwrap().ctime();
        let settled = SystemTime::UNIX_EPOCH
            + Duration::from_secs((changed + SETTLED_SECONDS).unsigned_abs() + 1);
        assert!(settled.elapsed().is_ok(), "the machine was set up this very moment");
        let (first, second) = (files.load().unwrap(), files.load().unwrap());
        assert!(Arc::ptr_eq(&first, &second));
    }

    fn accounts() -> Accounts {
        Accounts {
            passwd: String::from(
                "root:x:0:0:root:/root:/bin/bash\nbroken:x:no:1::/:/bin/sh\n\
                 developer:x:1000:1000:Dev,,,:/home/developer:/bin/bash\nbare:x:7:8::\n",
            ),
            group: String::from(
                "root:x:0:\nsudo:x:27:developer,other\nstaff:x:50:other\nusers:x:100:a,developer\nbad\n",
            ),
        }
    }

    #[test]
    fn a_login_is_found_with_its_groups() {
        let account = accounts().find(&User::Named("developer".into())).unwrap();
        assert_eq!((account.uid, account.gid, account.groups), (1000, 1000, vec![1000, 27, 100]));
        assert_eq!(account.home, Path::new("/home/developer"));
    }

    #[test]
    fn an_unknown_or_broken_login_is_no_such_user() {
        for name in ["nobody-here", "broken", "", "develop", "dev:x"] {
            let error = accounts().find(&User::Named(name.into())).unwrap_err();
            assert!(
                matches!(error, AgentError::Refused { code: FailureCode::NoSuchUser, .. }),
                "{name:?}"
            );
        }
    }

    #[test]
    fn root_exists_even_without_a_passwd_file() {
        let empty = Accounts { passwd: String::new(), group: String::new() };
        assert_eq!(empty.find(&User::Root).unwrap().uid, 0);
    }

    #[test]
    fn a_login_without_home_and_shell_gets_defaults() {
        let account = accounts().find(&User::Named("bare".into())).unwrap();
        assert_eq!((account.home, account.shell), (PathBuf::from("/"), "/bin/sh".into()));
    }
}
