//! The catalogue of images.

use skerry_internal_api::{ImageInfo, ImagePull, NodeCapacity, NodeError, PullFailure};
use skerry_model::ErrorKind;

use crate::{Caller, Control, Error, control::Inner};

impl Control {
    /// The images a workspace can be made from, by name.
    ///
    /// # Errors
    /// Only when the node is out of reach.
    pub async fn list_images(&self, caller: &Caller) -> Result<Vec<ImageInfo>, Error> {
        // The catalogue is the same for every caller; being one is what is asked for.
        let Caller { .. } = caller;
        self.inner.images().await
    }

    /// Begins to pull an image from a registry, unless that is under way, and says how far it is. What
    /// the reference means is looked up anew, also if an image of this name is here.
    ///
    /// # Errors
    /// `Invalid` (`image`) when it is no reference or its registry is not permitted; `NoCapacity` when
    /// too many are under way. How a pull ends is in [`Control::image_pulls`].
    pub async fn pull_image(&self, caller: &Caller, reference: &str) -> Result<ImagePull, Error> {
        // Pulled images are the server's, for everybody: registries are the operator's choice.
        let Caller { .. } = caller;
        let aliases = &self.inner.config.image_aliases;
        let reference = aliases.get(reference).map_or(reference, String::as_str);
        let begun = self.inner.node.begin_image_pull(reference);
        Ok(self.inner.bounded("begin_image_pull", begun).await??)
    }

    /// The pulls under way, and some that ended, by reference.
    ///
    /// # Errors
    /// Only when the node is out of reach.
    pub async fn image_pulls(&self, caller: &Caller) -> Result<Vec<ImagePull>, Error> {
        let Caller { .. } = caller;
        let mut pulls = self.inner.bounded("image_pulls", self.inner.node.image_pulls()).await?;
        pulls.sort_by(|a, b| a.reference.cmp(&b.reference));
        Ok(pulls)
    }

    /// The same catalogue without a caller: Rigbox publishes its templates to everybody.
    ///
    /// # Errors
    /// Only when the node is out of reach.
    pub async fn public_images(&self) -> Result<Vec<ImageInfo>, Error> {
        self.inner.images().await
    }

    /// Room on the node, without a caller: Rigbox publishes its capacity to everybody.
    ///
    /// # Errors
    /// Only when the node is out of reach.
    pub async fn capacity(&self) -> Result<NodeCapacity, Error> {
        self.inner.bounded("capacity", self.inner.node.capacity()).await
    }
}

impl Inner {
    /// The node's images, sorted by name.
    pub(crate) async fn images(&self) -> Result<Vec<ImageInfo>, Error> {
        let mut images = self.bounded("images", self.node.images()).await?;
        images.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(images)
    }

    /// The image a request means: its catalogue name, an alias of it, a reference to a registry, or
    /// the default. A reference whose image is not here is pulled, if the node may.
    pub(crate) async fn resolve_image(&self, asked: Option<&str>) -> Result<ImageInfo, Error> {
        let asked = asked.unwrap_or(&self.config.default_image);
        let name = self.config.image_aliases.get(asked).map_or(asked, String::as_str);
        if let Some(image) = self.bounded("images", self.node.image_named(name)).await? {
            return Ok(image);
        }
        let bound = self.config.node_call_timeout;
        let pulled = tokio::time::timeout(bound, self.node.ensure_image(name)).await;
        let Ok(pulled) = pulled else {
            let problem = "the image is still being pulled; try again when it is there";
            return Err(ErrorKind::Unavailable(problem.to_owned()).into());
        };
        match pulled {
            Err(
                NodeError::Pull {
                    why: PullFailure::InvalidReference | PullFailure::NotPermitted,
                    ..
                }
                | NodeError::Unsupported(_),
            ) => {
                let images = self.images().await?;
                let shown: String = asked.chars().take(64).flat_map(char::escape_default).collect();
                let mut names: Vec<_> = images.iter().map(|image| image.name.0.as_str()).collect();
                // Earlier builds of an image lie beside the newest.
                names.dedup();
                Err(Error::invalid("image", format!("there is no image {shown}"), names.join(", ")))
            }
            pulled => Ok(pulled?),
        }
    }

    /// A call to the node that must not hold a request for ever.
    pub(crate) async fn bounded<T>(
        &self,
        what: &'static str,
        call: impl Future<Output = T>,
    ) -> Result<T, Error> {
        let bound = self.config.node_call_timeout;
        tokio::time::timeout(bound, call)
            .await
            .map_err(|_| ErrorKind::Timeout(format!("the node: {what}")).into())
    }
}
