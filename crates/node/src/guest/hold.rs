//! Time as a guest can be expected to answer in: it stands still while the VM is paused.

use std::{future::Future, time::Duration};

use tokio::{
    sync::watch,
    time::{Instant, sleep},
};

/// Whether the VM is paused on purpose, and waiting that takes it into account.
#[derive(Debug)]
pub(super) struct Hold(watch::Sender<bool>);

impl Default for Hold {
    fn default() -> Self {
        Self(watch::Sender::new(false))
    }
}

impl Hold {
    pub(super) fn hold(&self) {
        self.0.send_replace(true);
    }

    pub(super) fn release(&self) {
        self.0.send_replace(false);
    }

    pub(super) fn is_held(&self) -> bool {
        *self.0.borrow()
    }

    /// Completes while the VM is not paused.
    pub(super) async fn released(&self) {
        // The sender is ours: there is no error.
        let _ = self.0.subscribe().wait_for(|held| !held).await;
    }

    /// Completes while the VM is paused.
    pub(super) async fn held(&self) {
        let _ = self.0.subscribe().wait_for(|held| *held).await;
    }

    /// Completes after the VM was not paused for so long.
    pub(super) async fn sleep(&self, duration: Duration) {
        let mut left = duration;
        loop {
            self.released().await;
            let began = Instant::now();
            tokio::select! {
                () = sleep(left) => return,
                () = self.held() => left = left.saturating_sub(began.elapsed()),
            }
        }
    }

    /// The outcome of `exchange`; `None` when it does not come while the VM runs for `within` in all.
    pub(super) async fn bounded<T>(
        &self,
        within: Duration,
        exchange: impl Future<Output = T>,
    ) -> Option<T> {
        tokio::select! {
            biased;
            outcome = exchange => Some(outcome),
            () = self.sleep(within) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn time_stands_still_while_held_and_goes_on_where_it_stood() {
        let hold = Hold::default();
        let began = Instant::now();
        let sleeping = async {
            hold.sleep(10 * SECOND).await;
            began.elapsed()
        };
        let pausing = async {
            for _ in 0..3 {
                sleep(3 * SECOND).await;
                hold.hold();
                hold.hold();
                sleep(1000 * SECOND).await;
                hold.release();
            }
        };
        let (slept, ()) = tokio::join!(sleeping, pausing);
        assert_eq!(slept.as_secs(), 3010);
    }

    #[tokio::test(start_paused = true)]
    async fn what_takes_longer_than_its_bound_is_given_up() {
        let hold = Hold::default();
        assert_eq!(hold.bounded(SECOND, std::future::pending::<()>()).await, None);
        assert_eq!(hold.bounded(SECOND, async { 7 }).await, Some(7));
    }
}
