//! Timers: when the rules of a workspace's life act, and what they do. A timer is computed from the
//! record alone, so that it is as durable as the record.

use crate::{
    Cause, Desired, ExpiryAction, IdleAction, RestartMode, State, Timer, Timestamp, Wish,
    Workspace, lifecycle::after,
};

impl Workspace {
    /// Every timer that runs, and when it rings.
    pub fn timers(&self) -> impl Iterator<Item = (Timer, Timestamp)> {
        let is_running = matches!(self.state, State::Running { .. });
        let may_end = match self.desired {
            Desired::Running | Desired::Paused => true,
            Desired::Suspended | Desired::Stopped | Desired::Deleted => false,
        };
        let rests = match self.desired {
            Desired::Paused => matches!(self.state, State::Paused { .. }),
            Desired::Suspended => self.state == State::Suspended,
            Desired::Running | Desired::Stopped | Desired::Deleted => false,
        };
        let expiry = self.expires_at.filter(|_| may_end);
        let restart = self.lifecycle.restart_at.filter(|_| self.desired == Desired::Running);
        let idle = self
            .spec
            .idle
            .filter(|_| is_running && self.desired == Desired::Running && !self.spec.keep_active)
            .and_then(|policy| Some(after(self.last_active_at?, policy.after_seconds)));
        let discard = self
            .spec
            .idle
            .filter(|_| rests && self.lifecycle.desired_by == Cause::Idle)
            .and_then(|policy| policy.discard_memory_after_seconds)
            .and_then(|kept| Some(after(self.lifecycle.resting_since?, kept)));
        [
            (Timer::Expiry, expiry),
            (Timer::Restart, restart),
            (Timer::Idle, idle),
            (Timer::DiscardMemory, discard),
        ]
        .into_iter()
        .filter_map(|(timer, at)| Some((timer, at?)))
    }

    /// When the next timer rings.
    #[must_use]
    pub fn due_at(&self) -> Option<Timestamp> {
        self.timers().map(|(_, at)| at).min()
    }

    /// Lets the first timer that is due ring and applies what follows; `None` when none is due. The
    /// timer does not ring again for the same reason.
    pub fn ring(&mut self, now: Timestamp) -> Option<Timer> {
        let (timer, _) = self.timers().find(|(_, at)| *at <= now)?;
        match timer {
            Timer::Expiry => {
                self.expires_at = None;
                if let Some(expiry) = self.spec.expiry {
                    let wish = match expiry.action {
                        ExpiryAction::Stop => Wish::Stop,
                        ExpiryAction::Delete => Wish::Delete,
                        ExpiryAction::Pause => Wish::Pause,
                        ExpiryAction::Suspend => Wish::Suspend,
                    };
                    // A rest is refused where there is no VM; then there is nothing to end.
                    let _refused = self.wish(wish, Cause::Expiry, now);
                }
            }
            Timer::Restart => self.lifecycle.restart_at = None,
            Timer::Idle => {
                let wish = match self.spec.idle.map(|policy| policy.action) {
                    Some(IdleAction::Pause) => Wish::Pause,
                    Some(IdleAction::Suspend) => Wish::Suspend,
                    Some(IdleAction::Stop) | None => Wish::Stop,
                };
                // It runs, so none of them is refused.
                let _refused = self.wish(wish, Cause::Idle, now);
            }
            Timer::DiscardMemory => {
                // It rests, so this is not refused.
                let _refused = self.wish(Wish::Stop, Cause::Idle, now);
            }
        }
        Some(timer)
    }

    /// A rule about idleness is new or holds again: it counts from now on, not from a use that nobody
    /// had to record.
    pub fn begin_idle_time_anew(&mut self, now: Timestamp) {
        self.last_active_at = self.last_active_at.map(|last| last.max(now));
    }

    /// Ends the wait for a restart that the restart policy, changed since, does not know any more.
    pub fn give_up_restart_unless_permitted(&mut self) {
        let policy = self.spec.restart;
        let within =
            policy.max_restarts == 0 || self.lifecycle.restart_count <= policy.max_restarts;
        if self.lifecycle.restart_at.is_some() && (policy.mode == RestartMode::Never || !within) {
            self.lifecycle.restart_at = None;
            self.desired = Desired::Stopped;
        }
    }
}
