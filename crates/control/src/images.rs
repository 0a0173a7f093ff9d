//! The catalogue of images.

use skerry_internal_api::{ImageInfo, NodeCapacity};
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

    /// The image a request means: its catalogue name, an alias of it, or the default.
    pub(crate) async fn resolve_image(&self, asked: Option<&str>) -> Result<ImageInfo, Error> {
        let asked = asked.unwrap_or(&self.config.default_image);
        let name = self.config.image_aliases.get(asked).map_or(asked, String::as_str);
        let mut images = self.images().await?;
        if let Some(index) = images.iter().position(|image| image.name.0 == name) {
            return Ok(images.swap_remove(index));
        }
        let shown: String = asked.chars().take(64).flat_map(char::escape_default).collect();
        let names: Vec<&str> = images.iter().map(|image| image.name.0.as_str()).collect();
        Err(Error::invalid("image", format!("there is no image {shown}"), names.join(", ")))
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
