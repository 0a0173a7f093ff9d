//! The custom domains that are served now, and what is answered for them to an ACME server.

use std::{
    collections::{HashMap, HashSet},
    fmt,
    sync::{Arc, PoisonError, RwLock},
};

use skerry_model::HostName;

/// Where an ACME server looks (RFC 8555, section 8.3).
const CHALLENGE_PATH: &str = "/.well-known/acme-challenge/";

/// Names that are served. Shared by the gateway, which reads, and the edge.
#[derive(Default)]
pub struct ServedNames {
    names: RwLock<HashSet<HostName>>,
    /// By name: the token that is asked for and its answer.
    answers: RwLock<HashMap<HostName, (String, String)>>,
}

impl fmt::Debug for ServedNames {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServedNames").finish_non_exhaustive()
    }
}

impl ServedNames {
    pub(crate) fn replace(&self, names: HashSet<HostName>) {
        *self.names.write().unwrap_or_else(PoisonError::into_inner) = names;
    }

    pub(super) fn contains(&self, name: &HostName) -> bool {
        self.names.read().unwrap_or_else(PoisonError::into_inner).contains(name)
    }

    /// The name that this host, lower case, is.
    pub(crate) fn find(&self, host: &str) -> Option<HostName> {
        let names = self.names.read().unwrap_or_else(PoisonError::into_inner);
        if names.is_empty() {
            return None;
        }
        let name = HostName::parse(host).ok()?;
        names.contains(&name).then_some(name)
    }

    /// What an ACME server is told that asks this name for this path.
    pub(crate) fn answer(&self, name: &HostName, path: &str) -> Option<String> {
        let asked = path.strip_prefix(CHALLENGE_PATH)?;
        let answers = self.answers.read().unwrap_or_else(PoisonError::into_inner);
        let (token, answer) = answers.get(name)?;
        (token == asked).then(|| answer.clone())
    }

    /// Answers for a name until what is returned is dropped.
    pub(super) fn answering(
        self: &Arc<Self>,
        name: &HostName,
        token: &str,
        answer: &str,
    ) -> Answering {
        let mut answers = self.answers.write().unwrap_or_else(PoisonError::into_inner);
        answers.insert(name.clone(), (token.to_owned(), answer.to_owned()));
        Answering { names: Arc::clone(self), name: name.clone() }
    }
}

/// An answer that is given as long as this exists.
pub(super) struct Answering {
    names: Arc<ServedNames>,
    name: HostName,
}

impl Drop for Answering {
    fn drop(&mut self) {
        let mut answers = self.names.answers.write().unwrap_or_else(PoisonError::into_inner);
        answers.remove(&self.name);
    }
}
