//! Bounds.

use std::time::Duration;

/// What a visit may take. The defaults are those of a server; tests choose their own.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// How long a visitor waits for a workspace to wake.
    pub open_within: Duration,
    /// How long a server inside may take to listen after its workspace has woken.
    pub listens_within: Duration,
    /// How long a connection to a port inside may take.
    pub connect_within: Duration,
    /// How long a server inside may take to answer, counted anew whenever a byte moves.
    pub answer_within: Duration,
    /// How long nothing may move on an open connection.
    pub silent_at_most: Duration,
    /// Connections into one workspace at the same time. The guest takes 96, of which some are left to
    /// SSH.
    pub connections: usize,
    /// Visitors of one workspace who wait for a connection,
    pub waiting: usize,
    /// and how long.
    pub place_within: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            open_within: Duration::from_secs(60),
            listens_within: Duration::from_secs(20),
            connect_within: Duration::from_secs(15),
            answer_within: Duration::from_secs(300),
            silent_at_most: Duration::from_secs(3600),
            connections: 80,
            waiting: 512,
            place_within: Duration::from_secs(10),
        }
    }
}
