//! Services that many people have: host, kind and usual names.

use super::ServiceAuth;

/// A service that many people have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CatalogueEntry {
    /// Its word.
    pub id: &'static str,
    /// What people call it.
    pub name: &'static str,
    /// Its hosts.
    pub host: &'static str,
    /// What requests to it are given.
    pub auth: CatalogueAuth,
}

/// What requests are given; see [`ServiceAuth`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CatalogueAuth {
    /// A token.
    Bearer(&'static str),
    /// A header: its name, the credential and what stands before it.
    ApiKey(&'static str, &'static str, &'static str),
    /// User and password.
    Basic(&'static str, &'static str),
    /// The credential and the text in the path that stands for it.
    UrlPath(&'static str, &'static str),
}

impl CatalogueEntry {
    /// What a service of this kind does.
    #[must_use]
    pub fn auth(&self) -> ServiceAuth {
        match self.auth {
            CatalogueAuth::Bearer(token) => ServiceAuth::Bearer { token: token.to_owned() },
            CatalogueAuth::ApiKey(header, key, prefix) => ServiceAuth::ApiKey {
                header: header.to_owned(),
                key: key.to_owned(),
                prefix: prefix.to_owned(),
            },
            CatalogueAuth::Basic(username, password) => {
                ServiceAuth::Basic { username: username.to_owned(), password: password.to_owned() }
            }
            CatalogueAuth::UrlPath(token, placeholder) => ServiceAuth::UrlPath {
                token: token.to_owned(),
                placeholder: placeholder.to_owned(),
            },
        }
    }

    /// The one of this id.
    #[must_use]
    pub fn find(id: &str) -> Option<&'static Self> {
        CATALOGUE.iter().find(|entry| entry.id == id)
    }
}

const fn entry(
    id: &'static str,
    name: &'static str,
    host: &'static str,
    auth: CatalogueAuth,
) -> CatalogueEntry {
    CatalogueEntry { id, name, host, auth }
}

use CatalogueAuth::{ApiKey, Basic, Bearer, UrlPath};

/// All of them.
pub const CATALOGUE: [CatalogueEntry; 25] = [
    entry("openai", "OpenAI", "api.openai.com", Bearer("OPENAI_API_KEY")),
    entry(
        "anthropic",
        "Anthropic",
        "api.anthropic.com",
        ApiKey("x-api-key", "ANTHROPIC_API_KEY", ""),
    ),
    entry("openrouter", "OpenRouter", "openrouter.ai", Bearer("OPENROUTER_API_KEY")),
    entry(
        "gemini",
        "Google Gemini",
        "generativelanguage.googleapis.com",
        ApiKey("x-goog-api-key", "GOOGLE_API_KEY", ""),
    ),
    entry("stripe", "Stripe", "api.stripe.com", Bearer("STRIPE_API_KEY")),
    entry("github", "GitHub", "api.github.com", Bearer("GITHUB_TOKEN")),
    entry("linear", "Linear", "api.linear.app", ApiKey("Authorization", "LINEAR_API_KEY", "")),
    entry("notion", "Notion", "api.notion.com", Bearer("NOTION_API_KEY")),
    entry("groq", "Groq", "api.groq.com", Bearer("GROQ_API_KEY")),
    entry("perplexity", "Perplexity", "api.perplexity.ai", Bearer("PERPLEXITY_API_KEY")),
    entry(
        "elevenlabs",
        "ElevenLabs",
        "api.elevenlabs.io",
        ApiKey("xi-api-key", "ELEVENLABS_API_KEY", ""),
    ),
    entry("cloudflare", "Cloudflare", "api.cloudflare.com", Bearer("CLOUDFLARE_API_TOKEN")),
    entry("datadog", "Datadog", "api.datadoghq.com", ApiKey("DD-API-KEY", "DD_API_KEY", "")),
    entry("sentry", "Sentry", "sentry.io", Bearer("SENTRY_AUTH_TOKEN")),
    entry("slack", "Slack", "slack.com", Bearer("SLACK_BOT_TOKEN")),
    entry("vercel", "Vercel", "api.vercel.com", Bearer("VERCEL_TOKEN")),
    entry("supabase", "Supabase", "*.supabase.co", ApiKey("apikey", "SUPABASE_KEY", "")),
    entry("jira", "Jira", "*.atlassian.net", Basic("JIRA_EMAIL", "JIRA_API_TOKEN")),
    entry("hubspot", "HubSpot", "api.hubapi.com", Bearer("HUBSPOT_ACCESS_TOKEN")),
    entry("twilio", "Twilio", "api.twilio.com", Basic("TWILIO_ACCOUNT_SID", "TWILIO_AUTH_TOKEN")),
    entry(
        "pagerduty",
        "PagerDuty",
        "api.pagerduty.com",
        ApiKey("Authorization", "PAGERDUTY_API_KEY", "Token token="),
    ),
    entry(
        "postmark",
        "Postmark",
        "api.postmarkapp.com",
        ApiKey("X-Postmark-Server-Token", "POSTMARK_SERVER_TOKEN", ""),
    ),
    entry("resend", "Resend", "api.resend.com", Bearer("RESEND_API_KEY")),
    entry("sendgrid", "SendGrid", "api.sendgrid.com", Bearer("SENDGRID_API_KEY")),
    entry(
        "telegram",
        "Telegram",
        "api.telegram.org",
        UrlPath("TELEGRAM_BOT_TOKEN", "TELEGRAM_BOT_TOKEN"),
    ),
];
