//! The catalogue of images.

use skerry_internal_api::{ImageInfo, NodeCapacity};

use crate::{Caller, Control, Error};

impl Control {
    /// The images a workspace can be made from, by name.
    ///
    /// # Errors
    /// Only when the node is out of reach.
    pub async fn list_images(&self, caller: &Caller) -> Result<Vec<ImageInfo>, Error> {
        unimplemented!("{caller:?}")
    }

    /// The same catalogue without a caller: Rigbox publishes its templates to everybody.
    ///
    /// # Errors
    /// Only when the node is out of reach.
    pub async fn public_images(&self) -> Result<Vec<ImageInfo>, Error> {
        unimplemented!()
    }

    /// Room on the node, without a caller: Rigbox publishes its capacity to everybody.
    ///
    /// # Errors
    /// Only when the node is out of reach.
    pub async fn capacity(&self) -> Result<NodeCapacity, Error> {
        unimplemented!()
    }
}
