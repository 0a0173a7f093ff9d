//! The one task that makes and removes templates and VMs that wait.

use std::{num::NonZero, sync::Arc, time::Duration};

use futures::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use tokio::time::Instant;

use super::{Nobodys, Order, Outcome, Tier, Waiting, slot};
use crate::{
    error::{Error, blocking, chain},
    host::{Host, StepFailed},
    promotion,
    templates::{self, Recipe, Template, TemplateKey},
};

/// How often demand is looked at that nobody has reported: it is only forgotten in between.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// How often the files of templates are brought in line with the books, and presets with the images.
const TIDY_EVERY: Duration = Duration::from_secs(60);

/// Keeps templates and the pool until the node ends; afterwards nobody waits any more.
pub(crate) async fn keep(host: Arc<Host>) {
    let mut keeper = Keeper {
        parallel: std::thread::available_parallelism().map_or(1, NonZero::get).div_ceil(2),
        work: FuturesUnordered::new(),
        making: 0,
        building: false,
        promoting: false,
        tidying: false,
        tidy_at: Instant::now(),
        host: Arc::clone(&host),
    };
    keeper.begin_opening();
    loop {
        tokio::select! {
            biased;
            () = host.shutdown.cancelled() => break,
            Some(done) = keeper.work.next(), if !keeper.work.is_empty() => keeper.done(done),
            () = host.pool.changed.notified() => {}
            () = tokio::time::sleep(LOOK_EVERY) => keeper.look(),
        }
        let asked = host.pool.asked();
        keeper.begin_what_is_due();
        if keeper.work.is_empty() {
            host.pool.answered(asked);
        }
    }
    // Everything under way is cancelled with the node and cleans up after itself.
    while let Some(done) = keeper.work.next().await {
        keeper.done(done);
    }
    host.pool.empty(&host).await;
}

struct Keeper {
    host: Arc<Host>,
    /// VMs made at the same time.
    parallel: usize,
    work: FuturesUnordered<BoxFuture<'static, Done>>,
    making: usize,
    building: bool,
    promoting: bool,
    tidying: bool,
    tidy_at: Instant,
}

/// Something that is over.
enum Done {
    Opened,
    Made { key: TemplateKey, tier: Tier, outcome: Outcome },
    Built,
    Promoted,
    Tidied,
    Released,
}

impl Keeper {
    fn done(&mut self, done: Done) {
        match done {
            Done::Opened | Done::Tidied => {
                self.tidying = false;
                self.tidy_at = Instant::now() + TIDY_EVERY;
            }
            Done::Made { key, tier, outcome } => {
                self.making -= 1;
                self.host.pool.made(&key, tier, outcome);
            }
            Done::Built => {
                self.building = false;
                // The new one may be one too many for the budget.
                self.tidy_at = Instant::now();
            }
            Done::Promoted => {
                self.promoting = false;
                self.tidy_at = Instant::now();
            }
            Done::Released => {}
        }
    }

    fn look(&mut self) {
        let leftovers = std::mem::take(&mut self.host.pool.lock().leftovers);
        for leftover in leftovers {
            self.release(leftover);
        }
        if !self.tidying && self.tidy_at <= Instant::now() {
            self.begin_tidying();
        }
    }

    fn begin_what_is_due(&mut self) {
        let host = Arc::clone(&self.host);
        while self.making < self.parallel {
            let template = |key: &TemplateKey| host.templates.look(key);
            let bounds = host.pool.bounds;
            let order = host.pool.lock().next_order(Instant::now(), bounds, template);
            match order {
                None => break,
                Some(Order::Release(waiting)) => self.release(waiting.into_nobodys()),
                Some(Order::Warm(waiting)) => {
                    self.make(Arc::clone(&waiting.template), Tier::Warm, Some(waiting))
                }
                Some(Order::Make(template, tier)) => self.make(template, tier, None),
            }
        }
        if !self.building
            && let Some((key, recipe)) = host.templates.take_wanted(Instant::now())
        {
            self.build(key, recipe);
        }
        if !self.promoting
            && let Some(promotion) = promotion::begin_wanted(&host, &host.pool.making())
        {
            self.promoting = true;
            self.work.push(promotion.map(|()| Done::Promoted).boxed());
        }
    }
}

impl Keeper {
    fn begin_opening(&mut self) {
        self.tidying = true;
        let host = Arc::clone(&self.host);
        let opening = async move {
            let looking = Arc::clone(&host);
            let found = blocking(move || {
                let found = templates::open_all(&looking)?;
                Ok((found, templates::presets(&looking)))
            })
            .await;
            match found {
                Ok((found, presets)) => {
                    for (template, last_used_at) in found {
                        let age = host.environment.now().duration_since(last_used_at);
                        host.pool.remember(&template.key, age.unsigned_abs());
                    }
                    ask_for(&host, presets);
                }
                Err(error) => report("opening the templates", &error),
            }
            Done::Opened
        };
        self.work.push(opening.boxed());
    }

    fn begin_tidying(&mut self) {
        self.tidying = true;
        let host = Arc::clone(&self.host);
        let tidying = async move {
            let looking = Arc::clone(&host);
            let tidied = blocking(move || {
                templates::tidy(&looking)?;
                Ok(templates::presets(&looking))
            })
            .await;
            match tidied {
                Ok(presets) => ask_for(&host, presets),
                Err(error) => report("tidying the templates", &error),
            }
            Done::Tidied
        };
        self.work.push(tidying.boxed());
    }

    fn build(&mut self, key: TemplateKey, recipe: Recipe) {
        self.building = true;
        let host = Arc::clone(&self.host);
        let cancel = host.pool.making();
        let building = async move {
            if let Err(failed) = templates::build(&host, &key, &recipe, &cancel).await {
                failed.report("making a template");
                host.templates.not_made(&key, recipe, Instant::now());
            }
            Done::Built
        };
        self.work.push(building.boxed());
    }

    fn make(&mut self, template: Arc<Template>, tier: Tier, parked: Option<Waiting>) {
        self.making += 1;
        let host = Arc::clone(&self.host);
        let cancel = host.pool.making();
        let making = async move {
            let key = template.key.clone();
            let made = match parked {
                Some(parked) => slot::warm(&host, parked, &cancel).await,
                None => slot::make(&host, Arc::clone(&template), tier, &cancel).await,
            };
            let outcome = outcome_of(&host, &template, made);
            Done::Made { key, tier, outcome }
        };
        self.work.push(making.boxed());
    }

    fn release(&mut self, nobodys: Nobodys) {
        let host = Arc::clone(&self.host);
        let releasing = async move {
            host.pool.discard(&host, nobodys).await;
            Done::Released
        };
        self.work.push(releasing.boxed());
    }
}

fn outcome_of(host: &Host, template: &Template, made: Result<Waiting, StepFailed>) -> Outcome {
    match made {
        Ok(waiting) => {
            host.templates.worked(&template.key);
            Outcome::Made(Box::new(waiting))
        }
        Err(failed) => {
            failed.report("making a VM for the pool");
            match failed.error {
                Error::Cancelled => Outcome::GivenUp,
                // No room is nobody's fault, and is not there at once the next time either.
                Error::NoCapacity(_) => Outcome::Failed,
                _ => {
                    host.templates.failed(template, Instant::now());
                    Outcome::Failed
                }
            }
        }
    }
}

/// What the configuration wants whether or not anybody asks.
fn ask_for(host: &Host, presets: Vec<(TemplateKey, Recipe)>) {
    let keys: Vec<TemplateKey> = presets.iter().map(|(key, _)| key.clone()).collect();
    host.pool.set_presets(&keys);
    for (key, recipe) in presets {
        host.templates.want(&key, recipe);
    }
}

fn report(doing: &'static str, error: &Error) {
    tracing::error!(error = chain(error), "{doing} failed");
}
