//! The catalogue of images.

use skerry_internal_api::ImageInfo;

use crate::{Caller, Control, Error};

impl Control {
    /// The images a workspace can be made from, by name.
    ///
    /// # Errors
    /// Only when the node is out of reach.
    pub async fn list_images(&self, caller: &Caller) -> Result<Vec<ImageInfo>, Error> {
        unimplemented!("{caller:?}")
    }
}
