//! Blueprints: services, setup scripts and templates that an account keeps. [`parts`] makes workloads
//! and sizes of a new workspace from them.

mod builtin;
mod parts;

use skerry_model::{
    Blueprint, BlueprintBody, BlueprintId, BlueprintKind, ErrorKind, MAX_BLUEPRINTS, Template,
};

use crate::{
    Caller, Control, Error,
    control::Inner,
    store::{BlueprintInsertion, Write},
};

pub use builtin::TemplateView;

/// How often a change is computed anew because the record changed meanwhile.
const MAX_REDOS: u32 = 32;

impl Control {
    /// Keeps a blueprint.
    ///
    /// # Errors
    /// `Invalid` (see [`Blueprint::check`]; a template's `setup_scripts`, `service_specs`, `apps` and
    /// `image` have to be there), `Conflict` when the name is taken or there are
    /// [`MAX_BLUEPRINTS`] of the kind.
    pub async fn create_blueprint(
        &self,
        caller: &Caller,
        name: &str,
        body: BlueprintBody,
    ) -> Result<Blueprint, Error> {
        let now = self.inner.now();
        let blueprint = Blueprint {
            id: BlueprintId::from_random(self.inner.random()),
            account_id: caller.account_id,
            name: name.to_owned(),
            body,
            created_at: now,
            updated_at: now,
            revision: 0,
        };
        self.inner.check_blueprint(caller, &blueprint).await?;
        let noun = blueprint.kind().noun();
        match self.inner.store.insert_blueprint(&blueprint, MAX_BLUEPRINTS).await? {
            BlueprintInsertion::Done(made) => Ok(*made),
            BlueprintInsertion::NameTaken => Err(name_taken(&blueprint)),
            BlueprintInsertion::TooMany => {
                let why = format!("the account has {MAX_BLUEPRINTS} of these already: {noun}");
                Err(ErrorKind::Conflict(why).into())
            }
        }
    }

    /// The account's blueprints of a kind, oldest first.
    ///
    /// # Errors
    /// Only faults of the store.
    pub async fn blueprints(
        &self,
        caller: &Caller,
        kind: BlueprintKind,
    ) -> Result<Vec<Blueprint>, Error> {
        self.inner.store.blueprints(caller.account_id, kind).await
    }

    /// One of the account's blueprints.
    ///
    /// # Errors
    /// `NotFound`, also for another account's and for one of another kind.
    pub async fn blueprint(
        &self,
        caller: &Caller,
        kind: BlueprintKind,
        id: BlueprintId,
    ) -> Result<Blueprint, Error> {
        let found = self.inner.store.blueprint(caller.account_id, kind, id).await?;
        found.ok_or_else(|| Error::not_found(kind.noun()))
    }

    /// Changes name and body of a blueprint, computed on the record that is written over. Workspaces
    /// that were made with it stay as they are.
    ///
    /// # Errors
    /// As [`Control::create_blueprint`]; `NotFound`; what `change` refuses.
    pub async fn update_blueprint(
        &self,
        caller: &Caller,
        kind: BlueprintKind,
        id: BlueprintId,
        change: impl Fn(&mut String, &mut BlueprintBody) -> Result<(), Error> + Send + Sync,
    ) -> Result<Blueprint, Error> {
        for _ in 0..MAX_REDOS {
            let before = self.blueprint(caller, kind, id).await?;
            let mut changed = before.clone();
            change(&mut changed.name, &mut changed.body)?;
            if changed == before {
                return Ok(before);
            }
            changed.updated_at = self.inner.now();
            self.inner.check_blueprint(caller, &changed).await?;
            match self.inner.store.update_blueprint(&changed).await? {
                Write::Done(written) => return Ok(written),
                Write::Taken => return Err(name_taken(&changed)),
                Write::Stale => {}
            }
        }
        Err(ErrorKind::Conflict("it is changed again and again".to_owned()).into())
    }

    /// Forgets a blueprint. Workspaces that were made with it keep what they have of it.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn delete_blueprint(
        &self,
        caller: &Caller,
        kind: BlueprintKind,
        id: BlueprintId,
    ) -> Result<(), Error> {
        match self.inner.store.remove_blueprint(caller.account_id, kind, id).await? {
            true => Ok(()),
            false => Err(Error::not_found(kind.noun())),
        }
    }
}

fn name_taken(blueprint: &Blueprint) -> Error {
    let why = format!("there is a {} named {} already", blueprint.kind().noun(), blueprint.name);
    ErrorKind::Conflict(why).into()
}

impl Inner {
    async fn check_blueprint(&self, caller: &Caller, blueprint: &Blueprint) -> Result<(), Error> {
        blueprint.check()?;
        match &blueprint.body {
            BlueprintBody::Service(_) | BlueprintBody::Setup(_) => Ok(()),
            BlueprintBody::Template(template) => self.check_template(caller, template).await,
        }
    }

    /// What a template names has to be there when it is named.
    async fn check_template(&self, caller: &Caller, template: &Template) -> Result<(), Error> {
        self.setups(caller, "setup_scripts", &template.setup).await?;
        self.services(caller, "service_specs", &template.services).await?;
        for id in &template.apps {
            if self.config.apps.app(id).is_none() {
                let known: Vec<&str> =
                    self.config.apps.apps().iter().map(|app| app.id.as_str()).collect();
                let shown: String = id.chars().take(64).flat_map(char::escape_default).collect();
                return Err(Error::invalid(
                    "apps",
                    format!("there is no {shown}"),
                    known.join(", "),
                ));
            }
        }
        self.check_sizes(template)
    }

    /// Sizes that no workspace may have would make it useless.
    fn check_sizes(&self, template: &Template) -> Result<(), Error> {
        let plan = &self.config.plan;
        let sizes = [
            ("vcpu_count", template.least.vcpu_count, plan.vcpu_count, ""),
            ("memory_mib", template.least.memory_mib, plan.memory_mib, " MiB"),
            ("disk_mib", template.least.disk_mib, plan.disk_mib, " MiB"),
        ];
        for (field, value, range, unit) in sizes {
            if !(range.min.max(1)..=range.max).contains(&value) {
                let allowed = format!("{} to {}{unit}", range.min.max(1), range.max);
                return Err(Error::invalid(field, format!("{value} is out of range"), allowed));
            }
        }
        Ok(())
    }
}
