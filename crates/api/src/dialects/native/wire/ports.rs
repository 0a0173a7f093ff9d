//! Published ports.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Who may visit a published port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Visibility {
    /// Everybody.
    Public,
    /// Whoever has its token, or an API key of the account.
    Private,
}

/// The ports that a workspace publishes.
#[derive(Serialize, ToSchema)]
pub struct PublishedPortList {
    /// By port.
    pub published_ports: Vec<PublishedPort>,
}

/// A port of a workspace with an address of its own. Without `Debug`: it may have a token.
#[derive(Serialize, ToSchema)]
pub struct PublishedPort {
    /// The port inside.
    pub port: u16,
    /// The first label of its host.
    pub slug: String,
    /// Where it is visited.
    pub url: String,
    /// The owner's word for it.
    pub label: Option<String>,
    /// Who may visit it.
    pub visibility: Visibility,
    /// When it was published.
    #[schema(format = DateTime)]
    pub created_at: String,
    /// Only in the answer to the call that made it: what opens a private port, in the header
    /// `X-Skerry-Token` or the query parameter `skerry_token`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
}

/// A port to publish.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PublishPort {
    /// The port inside.
    #[schema(minimum = 1)]
    pub port: u16,
    /// The first label of its host, unique in the installation [default: 16 random characters].
    #[schema(min_length = 3, max_length = 63, pattern = "^[a-z0-9][a-z0-9-]*[a-z0-9]$")]
    pub slug: Option<String>,
    /// A word for it.
    #[schema(min_length = 1, max_length = 100)]
    pub label: Option<String>,
    /// Who may visit it [default: private]. Private makes a new token.
    pub visibility: Option<Visibility>,
}

/// What to change of a published port; what is left out stays.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UpdatePublishedPort {
    /// See the publication. The address before leads nowhere from then on.
    #[schema(min_length = 3, max_length = 63, pattern = "^[a-z0-9][a-z0-9-]*[a-z0-9]$")]
    pub slug: Option<String>,
    /// See the publication.
    #[schema(min_length = 1, max_length = 100)]
    pub label: Option<String>,
    /// See the publication. Private makes a new token.
    pub visibility: Option<Visibility>,
}
