//! Who is who in the guest: `/etc/passwd` and `/etc/group`, read by ourselves because a static
//! program has no name service.

use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};

use nix::unistd::{getegid, geteuid};
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

/// The two files' text.
pub(crate) struct Accounts {
    passwd: String,
    group: String,
}

impl Accounts {
    /// Reads the guest's own files; a missing one is empty.
    pub(crate) fn load() -> Result<Self, AgentError> {
        Ok(Self { passwd: read(Path::new("/etc/passwd"))?, group: read(Path::new("/etc/group"))? })
    }

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
    use super::*;

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
