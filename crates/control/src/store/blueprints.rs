//! What a database has to offer for blueprints.

use async_trait::async_trait;
use skerry_model::{AccountId, Blueprint, BlueprintId, BlueprintKind};

use super::Write;
use crate::Error;

/// What came of recording a blueprint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BlueprintInsertion {
    /// It is recorded, with revision 1.
    Done(Box<Blueprint>),
    /// The account has one of this kind and name.
    NameTaken,
    /// The account has as many of this kind as it may.
    TooMany,
}

/// Parts of workspaces-to-be.
#[async_trait]
pub trait BlueprintStore: Send + Sync {
    /// Records a blueprint, if its account has none of its kind and name and fewer than `max` of its kind.
    async fn insert_blueprint(
        &self,
        blueprint: &Blueprint,
        max: u32,
    ) -> Result<BlueprintInsertion, Error>;

    /// Replaces name, body and time of change of the record if its revision is still this one;
    /// [`Write::Stale`] when it is another or the record is gone, [`Write::Taken`] when the account has
    /// another of this kind and name. The written record has the next revision.
    async fn update_blueprint(&self, blueprint: &Blueprint) -> Result<Write<Blueprint>, Error>;

    /// Removes one of the account's of this kind; answers whether it had it.
    async fn remove_blueprint(
        &self,
        account_id: AccountId,
        kind: BlueprintKind,
        id: BlueprintId,
    ) -> Result<bool, Error>;

    /// The account's of this kind, oldest first.
    async fn blueprints(
        &self,
        account_id: AccountId,
        kind: BlueprintKind,
    ) -> Result<Vec<Blueprint>, Error>;

    /// One of the account's of this kind.
    async fn blueprint(
        &self,
        account_id: AccountId,
        kind: BlueprintKind,
        id: BlueprintId,
    ) -> Result<Option<Blueprint>, Error>;
}
