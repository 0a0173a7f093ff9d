//! Blueprints, of the store that dies.

use async_trait::async_trait;
use skerry_control::{
    Error,
    store::{BlueprintInsertion, BlueprintStore, Write},
};
use skerry_model::{AccountId, Blueprint, BlueprintId, BlueprintKind};

use super::FusedStore;

#[async_trait]
impl BlueprintStore for FusedStore {
    async fn insert_blueprint(
        &self,
        blueprint: &Blueprint,
        max: u32,
    ) -> Result<BlueprintInsertion, Error> {
        self.1.counted(self.0.insert_blueprint(blueprint, max)).await
    }

    async fn update_blueprint(&self, blueprint: &Blueprint) -> Result<Write<Blueprint>, Error> {
        self.1.counted(self.0.update_blueprint(blueprint)).await
    }

    async fn remove_blueprint(
        &self,
        account_id: AccountId,
        kind: BlueprintKind,
        id: BlueprintId,
    ) -> Result<bool, Error> {
        self.1.counted(self.0.remove_blueprint(account_id, kind, id)).await
    }

    async fn blueprints(
        &self,
        account_id: AccountId,
        kind: BlueprintKind,
    ) -> Result<Vec<Blueprint>, Error> {
        self.1.uncounted(self.0.blueprints(account_id, kind)).await
    }

    async fn blueprint(
        &self,
        account_id: AccountId,
        kind: BlueprintKind,
        id: BlueprintId,
    ) -> Result<Option<Blueprint>, Error> {
        self.1.uncounted(self.0.blueprint(account_id, kind, id)).await
    }
}
