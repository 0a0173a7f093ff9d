//! As whom a socket works in the guest: the user that Aether's images have for people, else the image's own.

use std::collections::BTreeMap;

use skerry_control::internal_api::{ExecOutput, ExecRequest, NodeError, User};

use super::Connection;

/// The user of images that are made for people.
const USER: &str = "developer";
/// No home has a longer path.
const PATH_MAX_BYTES: usize = 4096;

/// A user of the guest.
pub(super) struct Login {
    pub(super) user: User,
    /// Where its shells begin, without a slash at the end.
    pub(super) home: String,
}

impl Connection {
    /// As whom, asked for once.
    pub(super) async fn login(&self) -> Result<&Login, NodeError> {
        let asked = || async {
            let (user, home) = match self.home(User::Named(USER.to_owned())).await {
                Err(NodeError::Guest { code: "no_such_user", .. }) => {
                    (User::OfImage, self.home(User::OfImage).await?)
                }
                home => (User::Named(USER.to_owned()), home?),
            };
            Ok(Login { user, home })
        };
        self.login.get_or_try_init(asked).await
    }

    async fn home(&self, user: User) -> Result<String, NodeError> {
        let unknown = |why: &str| NodeError::Guest {
            code: "other",
            message: format!("the home of the workspace's user: {why}"),
        };
        let request = ExecRequest {
            argv: vec!["pwd".to_owned()],
            env: BTreeMap::new(),
            working_dir: None,
            user,
            pty: None,
            timeout: None,
        };
        let mut session = self.guest.exec(request).await?;
        let mut said = Vec::new();
        while let Some(output) = session.output.recv().await {
            match output? {
                ExecOutput::Stdout(bytes) => said.extend_from_slice(&bytes),
                ExecOutput::Stderr(_) => {}
                ExecOutput::Exit(_) => break,
            }
            if said.len() > PATH_MAX_BYTES {
                return Err(unknown("its path is too long"));
            }
        }
        let said = String::from_utf8(said).map_err(|_| unknown("its path is no text"))?;
        let path = said.trim_end_matches('\n');
        match path.starts_with('/') {
            // The root directory is written as nothing, so that paths can follow it.
            true => Ok(path.trim_end_matches('/').to_owned()),
            false => Err(unknown("it is not known")),
        }
    }
}
