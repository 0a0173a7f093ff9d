//! Templates that are there without anybody's having made them: one for each image of the server.

use skerry_internal_api::ImageInfo;
use skerry_model::{BlueprintBody, BlueprintKind, Floor, Template, Timestamp};

use crate::{Caller, Control, Error, control::Inner};

/// Sizes of a template that is there by itself.
const LEAST: Floor = Floor { vcpu_count: 1, memory_mib: 512, disk_mib: 3072 };

fn template_of(image: &ImageInfo) -> Template {
    Template {
        description: image.description.clone(),
        category: image.category.clone(),
        image: image.name.to_string(),
        least: LEAST,
        ..Template::default()
    }
}

/// A template as it is shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TemplateView {
    /// How a request names it.
    pub id: String,
    /// Its name for people.
    pub name: String,
    /// What it says.
    pub template: Template,
    /// When it was made and last changed; `None`: it is there by itself.
    pub times: Option<(Timestamp, Timestamp)>,
}

impl Control {
    /// The templates that are there for everybody, by name.
    ///
    /// # Errors
    /// Only when the node is out of reach.
    pub async fn public_templates(&self) -> Result<Vec<TemplateView>, Error> {
        let images = self.inner.images().await?;
        Ok(images.iter().map(built_in).collect())
    }

    /// The templates that are there for everybody, and then the account's own, oldest first.
    ///
    /// # Errors
    /// When the node is out of reach.
    pub async fn templates(&self, caller: &Caller) -> Result<Vec<TemplateView>, Error> {
        let mut all = self.public_templates().await?;
        for own in self.blueprints(caller, BlueprintKind::Template).await? {
            if let BlueprintBody::Template(template) = own.body {
                all.push(TemplateView {
                    id: own.id.to_string(),
                    name: own.name,
                    template,
                    times: Some((own.created_at, own.updated_at)),
                });
            }
        }
        Ok(all)
    }

    /// The template that a request names so.
    ///
    /// # Errors
    /// `NotFound`, also for another account's.
    pub async fn template(&self, caller: &Caller, id: &str) -> Result<TemplateView, Error> {
        let all = self.templates(caller).await?;
        all.into_iter().find(|one| one.id == id).ok_or_else(|| Error::not_found("template"))
    }
}

fn built_in(image: &ImageInfo) -> TemplateView {
    TemplateView {
        id: image.name.to_string(),
        name: image.name.to_string(),
        template: template_of(image),
        times: None,
    }
}

impl Inner {
    /// The template that is there by itself under this name.
    pub(super) async fn built_in_template(&self, name: &str) -> Result<Option<Template>, Error> {
        let images = self.images().await?;
        Ok(images.iter().find(|image| image.name.0 == name).map(template_of))
    }
}
