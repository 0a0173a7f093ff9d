//! Templates: machines that were booted once, warmed, and saved, from which any number of workspaces
//! start without a boot. A clone's memory and disk are the template's, copied on write.
//!
//! ```text
//! <data-dir>/templates/<key>/manifest.json, state, ram     sealed; its disk is a layer
//! ```
//! A template's key names everything that has to be the same for it to stand for a booted machine
//! ([`TemplateKey`]). When anything of that changes, the key does, the template is made anew and the
//! old one is removed. Whoever runs from a template keeps its files open: removing one hurts nobody.

mod build;
mod key;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use skerry_model::{Shape, Timestamp, spec::ImageDigest};
use skerry_vmm::{Capability, Vmm};
use tokio::time::Instant;

use crate::{
    Error, TemplatePreset,
    error::chain,
    host::Host,
    images::BootFiles,
    promotion,
    saved::{About, Budgeted, RAM_FILE, STATE_FILE, Sealed, evict},
    vm::bring_up::machine_of,
};

pub(crate) use self::{
    build::build,
    key::{Ingredients, TemplateKey},
};

/// Templates that wait to be made. Who asks for more kinds of machines than this at once boots them.
const MAX_WANTED: usize = 16;
/// After the first failure to make or use a template it is left alone for so long, after each further
/// one twice as long,
const TROUBLE_FIRST: Duration = Duration::from_secs(60);
/// and never longer than this.
const TROUBLE_MOST: Duration = Duration::from_secs(3600);
/// Restores that fail one after the other before a template is given up.
const FAILURES_MAX: u32 = 2;

/// What a template is made from, as a workspace asks for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Recipe {
    pub image_digest: ImageDigest,
    pub shape: Shape,
}

/// A template that can be used.
#[derive(Debug)]
pub(crate) struct Template {
    pub key: TemplateKey,
    pub recipe: Recipe,
    pub sealed: Sealed,
    /// The devices.
    pub state: PathBuf,
    /// The memory.
    pub ram: PathBuf,
}

impl Template {
    /// The template that was sealed as `sealed`.
    fn of(key: TemplateKey, sealed: Sealed) -> Result<Self, Error> {
        let wrong = |problem: &str| Error::SavedState {
            path: sealed.place().to_owned(),
            problem: problem.to_owned(),
        };
        match sealed.manifest.about {
            About::Template => {}
            About::Snapshot { .. }
            | About::PromotedMemory { .. }
            | About::SuspendedMemory { .. } => return Err(wrong("is no template")),
        }
        let state = sealed.file(STATE_FILE).ok_or_else(|| wrong("has no state"))?;
        let ram = sealed.file(RAM_FILE).ok_or_else(|| wrong("has no memory"))?;
        let (image_digest, shape) = (sealed.manifest.image_digest.clone(), sealed.manifest.shape);
        Ok(Self { key, recipe: Recipe { image_digest, shape }, sealed, state, ram })
    }
}

/// The templates of a node.
#[derive(Debug)]
pub(crate) struct Templates {
    /// Why there are none, when there are none.
    off: Option<&'static str>,
    budget_bytes: u64,
    books: Mutex<Books>,
}

#[derive(Debug, Default)]
struct Books {
    ready: BTreeMap<TemplateKey, Arc<Template>>,
    /// Used since the last look at the books.
    used: BTreeSet<TemplateKey>,
    wanted: BTreeMap<TemplateKey, Recipe>,
    /// Being made, and therefore not wanted.
    making: Option<TemplateKey>,
    trouble: BTreeMap<TemplateKey, Trouble>,
    /// Given up and to be removed.
    condemned: BTreeSet<TemplateKey>,
}

/// What went wrong with something that can be made again, one time after the other.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Trouble {
    failures: u32,
    /// It is left alone until then.
    pub not_before: Instant,
}

impl Trouble {
    /// One more failure, now.
    pub fn after(before: Option<Self>, now: Instant) -> Self {
        let failures = before.map_or(0, |before| before.failures).saturating_add(1);
        let doubled = TROUBLE_FIRST.saturating_mul(1 << (failures - 1).min(10));
        Self { failures, not_before: now + doubled.min(TROUBLE_MOST) }
    }
}

impl Templates {
    /// With `budget_mib` on the disk, as far as the driver can clone machines.
    pub fn new(budget_mib: u64, vmm: &dyn Vmm) -> Self {
        let needed =
            [Capability::Pause, Capability::Snapshot, Capability::Restore, Capability::CloneMemory];
        let supported = &vmm.capabilities().supported;
        let off = if budget_mib == 0 {
            Some("switched off")
        } else if needed.iter().any(|capability| !supported.contains(capability)) {
            Some("this hypervisor cannot clone a machine")
        } else {
            None
        };
        Self { off, budget_bytes: budget_mib.saturating_mul(1024 * 1024), books: Mutex::default() }
    }

    /// Why there are none; `None` when there may be.
    pub fn off(&self) -> Option<&'static str> {
        self.off
    }

    /// Which template stands for a boot of this; `None` when none may.
    pub fn key(
        &self,
        host: &Host,
        image: &ImageDigest,
        boot: &BootFiles,
        shape: &Shape,
    ) -> Option<TemplateKey> {
        if self.off.is_some() {
            return None;
        }
        let fingerprint = host.vmm.fingerprint(&machine_of(shape, host.cable()));
        let boot = &boot.digest();
        Some(TemplateKey::of(&Ingredients { image, boot, fingerprint: &fingerprint, shape }))
    }

    /// The template with this key, to be used now.
    pub fn find(&self, key: &TemplateKey) -> Option<Arc<Template>> {
        let mut books = self.lock();
        let found = books.ready.get(key).cloned()?;
        books.used.insert(key.clone());
        Some(found)
    }

    /// The template with this key.
    pub fn look(&self, key: &TemplateKey) -> Option<Arc<Template>> {
        self.lock().ready.get(key).cloned()
    }

    /// Every template.
    pub fn all(&self) -> Vec<Arc<Template>> {
        self.lock().ready.values().cloned().collect()
    }

    /// Asks for a template that is not there. True when that is news.
    pub fn want(&self, key: &TemplateKey, recipe: Recipe) -> bool {
        let mut books = self.lock();
        let known = books.ready.contains_key(key)
            || books.wanted.contains_key(key)
            || books.making.as_ref() == Some(key);
        if known || books.wanted.len() >= MAX_WANTED {
            return false;
        }
        books.wanted.insert(key.clone(), recipe);
        true
    }

    /// A template to make now. It counts as being made until it is there or [`Templates::not_made`].
    pub fn take_wanted(&self, now: Instant) -> Option<(TemplateKey, Recipe)> {
        let mut books = self.lock();
        let due = |key: &TemplateKey| {
            books.trouble.get(key).is_none_or(|trouble| trouble.not_before <= now)
        };
        let key = books.wanted.keys().find(|key| due(key)).cloned()?;
        books.making = Some(key.clone());
        books.wanted.remove_entry(&key)
    }

    /// A clone of it runs.
    pub fn worked(&self, key: &TemplateKey) {
        self.lock().trouble.remove(key);
    }

    /// A start from it failed: whatever was wrong, after a few times in a row it is made anew.
    pub fn failed(&self, template: &Template, now: Instant) {
        let mut books = self.lock();
        let trouble = Trouble::after(books.trouble.get(&template.key).copied(), now);
        books.trouble.insert(template.key.clone(), trouble);
        if trouble.failures >= FAILURES_MAX && books.ready.remove(&template.key).is_some() {
            tracing::warn!(template = %template.key, "template given up: starts from it fail");
            books.condemned.insert(template.key.clone());
        }
    }

    /// It could not be made. It is wanted still, a while later.
    pub fn not_made(&self, key: &TemplateKey, recipe: Recipe, now: Instant) {
        let mut books = self.lock();
        let trouble = Trouble::after(books.trouble.get(key).copied(), now);
        books.trouble.insert(key.clone(), trouble);
        books.making.take_if(|making| making == key);
        books.wanted.insert(key.clone(), recipe);
    }

    fn made(&self, template: Arc<Template>) {
        let mut books = self.lock();
        books.making.take_if(|making| *making == template.key);
        // Found at start, it may have been asked for before it was found.
        books.wanted.remove(&template.key);
        books.condemned.remove(&template.key);
        books.ready.insert(template.key.clone(), template);
    }

    fn lock(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What an earlier life of the server left, read in full: usable templates, and when each was last
/// used. Damaged and outdated ones are removed. Blocks for as long as the reading takes.
pub(crate) fn open_all(host: &Host) -> Result<Vec<(Arc<Template>, Timestamp)>, Error> {
    if host.templates.off().is_some() {
        return Ok(Vec::new());
    }
    let parent = host.layout.templates_dir();
    let states = &host.storage.states;
    states.remove_damaged(&parent)?;
    remove_outdated(host)?;
    evict_over_budget(host)?;
    let mut found = Vec::new();
    for Budgeted { sealed, last_used_at, .. } in states.by_last_use(states.usable(&parent)?) {
        let place = sealed.place().to_owned();
        let Some(key) = key_of(&place) else { continue };
        match Template::of(key, sealed) {
            Ok(template) => {
                let template = Arc::new(template);
                host.templates.made(Arc::clone(&template));
                found.push((template, last_used_at));
            }
            Err(error) => {
                tracing::warn!(error = chain(&error), "template removed");
                states.delete(&place)?;
            }
        }
    }
    Ok(found)
}

/// Brings the files in line with the books: uses are recorded, and what is condemned, outdated or
/// over the budget is removed. Blocks.
pub(crate) fn tidy(host: &Host) -> Result<(), Error> {
    let (used, condemned) = {
        let mut books = host.templates.lock();
        (std::mem::take(&mut books.used), std::mem::take(&mut books.condemned))
    };
    let now = host.environment.now();
    for template in used.iter().filter_map(|key| host.templates.look(key)) {
        host.storage.states.used(&template.sealed, now)?;
    }
    for key in condemned {
        host.storage.states.delete(&host.layout.template(&key.to_string()))?;
    }
    remove_outdated(host)?;
    promotion::remove_outdated(host)?;
    evict_over_budget(host)
}

/// Removes templates that no start asks for any more: their image, the kernel, the hypervisor or this
/// program has changed, or their name is no key.
fn remove_outdated(host: &Host) -> Result<(), Error> {
    let parent = host.layout.templates_dir();
    // Without boot files nothing is known of what starts will ask for.
    let Ok(boot) = host.images.boot_files() else { return Ok(()) };
    for (name, sealed) in host.storage.states.list(&parent)? {
        let current = sealed.ok().and_then(|sealed| {
            let manifest = &sealed.manifest;
            host.images.by_digest(&manifest.image_digest).ok()?;
            host.templates.key(host, &manifest.image_digest, &boot, &manifest.shape)
        });
        if current.is_none_or(|key| key.to_string() != name) {
            tracing::info!(template = name, "outdated template removed");
            remove(host, &name)?;
        }
    }
    Ok(())
}

/// Templates and promoted memory have one budget: both are memory that many VMs share, and can be made
/// again. The least recently used go first.
fn evict_over_budget(host: &Host) -> Result<(), Error> {
    let states = &host.storage.states;
    let mut all = states.usable(&host.layout.templates_dir())?;
    all.extend(promotion::all(host)?);
    for place in evict(states, all, host.templates.budget_bytes, &BTreeSet::new())? {
        tracing::info!(place = %place.display(), "removed: over the budget of templates");
        if let Some(key) = key_of(&place) {
            host.templates.lock().ready.remove(&key);
        }
        if let Some(snapshot_id) = promotion::snapshot_at(host, &place) {
            host.promotions.not_kept(snapshot_id, Instant::now());
        }
    }
    Ok(())
}

fn key_of(place: &Path) -> Option<TemplateKey> {
    place.file_name()?.to_str()?.parse().ok()
}

fn remove(host: &Host, name: &str) -> Result<(), Error> {
    forget(host, name);
    host.storage.states.delete(&host.layout.templates_dir().join(name))
}

fn forget(host: &Host, name: &str) {
    if let Ok(key) = name.parse::<TemplateKey>() {
        host.templates.lock().ready.remove(&key);
    }
}

/// What the configuration wants to be ready, as far as its images are there. Blocks.
pub(crate) fn presets(host: &Host) -> Vec<(TemplateKey, Recipe)> {
    let Ok(boot) = host.images.boot_files() else { return Vec::new() };
    let preset = |preset: &TemplatePreset| {
        let image_digest = match host.images.by_name(&preset.image) {
            Ok(image) => image.digest().clone(),
            Err(error) => {
                tracing::warn!(image = %preset.image, %error, "no template of this image");
                return None;
            }
        };
        let key = host.templates.key(host, &image_digest, &boot, &preset.shape)?;
        Some((key, Recipe { image_digest, shape: preset.shape }))
    };
    host.config.template_presets.iter().filter_map(preset).collect()
}

/// What the usable templates take on the disk, in bytes. Blocks.
pub(crate) fn allocated_bytes(host: &Host) -> u64 {
    let states = &host.storage.states;
    let all = states.usable(&host.layout.templates_dir()).unwrap_or_default();
    states.by_last_use(all).iter().map(|one| one.allocated_bytes).sum()
}

#[cfg(test)]
mod tests {
    use skerry_model::{DiskMib, MemMib, VcpuCount, spec::CpuKind};
    use skerry_vmm::fake::{FakeHost, FakeVmm};

    use super::*;

    fn recipe() -> Recipe {
        let shape = Shape {
            vcpu_count: VcpuCount(1),
            memory_mib: MemMib(256),
            disk_mib: DiskMib(64),
            cpu_kind: CpuKind::Shared,
        };
        Recipe { image_digest: ImageDigest("sha256:0".to_owned()), shape }
    }

    fn templates(budget_mib: u64) -> Templates {
        let guest: skerry_vmm::fake::FakeGuest = Arc::new(|_| Box::pin(std::future::pending()));
        Templates::new(budget_mib, &FakeVmm::new(FakeHost::new(guest)))
    }

    #[test]
    fn without_a_budget_there_are_none() {
        assert_eq!(templates(0).off(), Some("switched off"));
        assert_eq!(templates(1).off(), None);
    }

    #[test]
    fn what_could_not_be_made_is_tried_again_after_longer_and_longer() {
        let templates = templates(1);
        let (key, start) = (TemplateKey::for_tests(1), Instant::now());
        assert!(templates.want(&key, recipe()));
        assert!(!templates.want(&key, recipe()), "it is wanted already");
        let mut now = start;
        for expected in [60, 120, 240, 480, 960, 1920, 3600, 3600] {
            let (taken, recipe) = templates.take_wanted(now).unwrap();
            assert_eq!(taken, key);
            templates.not_made(&key, recipe, now);
            now += Duration::from_secs(expected);
            assert!(templates.take_wanted(now - Duration::from_secs(1)).is_none());
        }
    }

    #[test]
    fn whoever_asks_for_what_is_being_made_brings_no_second_one_about() {
        let templates = templates(1);
        let (key, now) = (TemplateKey::for_tests(1), Instant::now());
        assert!(templates.want(&key, recipe()));
        let (_, taken) = templates.take_wanted(now).unwrap();
        assert!(!templates.want(&key, recipe()), "it is being made");
        assert!(templates.take_wanted(now + TROUBLE_MOST).is_none());
        templates.not_made(&key, taken, now);
        assert!(templates.take_wanted(now + TROUBLE_FIRST).is_some());
    }

    #[test]
    fn only_so_many_can_be_asked_for() {
        let templates = templates(1);
        let asked =
            (0..100).filter(|number| templates.want(&TemplateKey::for_tests(*number), recipe()));
        assert_eq!(asked.count(), MAX_WANTED);
    }
}
