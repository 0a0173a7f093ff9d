//! Pulls under way: each image once, however many ask for it.

use std::{
    collections::{HashMap, VecDeque},
    fs::{self, File},
    io::Read,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use oci_spec::distribution::Reference;
use skerry_internal_api::{ImageInfo, ImagePull, NodeError, PullStep};
use skerry_model::{Timestamp, spec::ImageRef};
use tokio::sync::{Semaphore, watch};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    super::{
        ImageError, ImageManifest, ImageStore, StoredImage,
        build::{make_sparse, uuid_for},
        manifest::{FORMAT, OciOrigin, SealedFile, digest_bytes},
        store::{DISK_FILE, FileLock},
    },
    PullError, PullPolicy,
    blob::{digits, fetch},
    credentials::login_for,
    disk,
    documents::{self, Contents, Found},
    layer::{self, Budget},
    registry::Repository,
    tree::Tree,
    users::login_of,
};
use crate::error::outcome_of;

/// Pulls that transfer or unpack at the same time; more would only share the same disk.
const CONCURRENT: usize = 2;
/// Pulls that are under way or wait for their turn.
const MAX_UNDER_WAY: usize = 32;
/// Ended pulls that are remembered for those who ask how it went.
const MAX_ENDED: usize = 64;
/// What a pull that was broken off has left is kept this long, to be continued.
const KEPT_FOR: Duration = Duration::from_secs(24 * 3600);
const PULLS: &str = "pulls";
const MAX_PASSWD_BYTES: u64 = 1 << 20;

/// Pulls images into the store.
pub struct Puller {
    store: ImageStore,
    policy: PullPolicy,
    now: Arc<dyn Fn() -> Timestamp + Send + Sync>,
    turns: Semaphore,
    books: Mutex<Books>,
    /// Cancelled when pulls are to be dropped where they are.
    ends: [CancellationToken; 2],
    tasks: TaskTracker,
}

#[derive(Default)]
struct Books {
    under_way: HashMap<String, watch::Receiver<ImagePull>>,
    /// The newest last.
    ended: VecDeque<ImagePull>,
}

impl Puller {
    /// Pulls into `store` by the rules of `policy`. A pull is dropped where it is when one of `ends` is
    /// cancelled; the next one of the same image continues it.
    #[must_use]
    pub fn new(
        store: ImageStore,
        policy: PullPolicy,
        now: Arc<dyn Fn() -> Timestamp + Send + Sync>,
        ends: [CancellationToken; 2],
        tasks: TaskTracker,
    ) -> Self {
        let turns = Semaphore::new(CONCURRENT);
        Self { store, policy, now, turns, books: Mutex::default(), ends, tasks }
    }

    /// Removes what pulls have left that were broken off long ago. Blocks.
    pub fn sweep(&self) {
        let directory = self.store.directory().join(PULLS);
        let Ok(entries) = fs::read_dir(directory) else { return };
        let now = (self.now)().as_second();
        for entry in entries.flatten() {
            let modified = entry.metadata().and_then(|metadata| metadata.modified()).ok();
            let age = modified
                .and_then(|time| Timestamp::try_from(time).ok())
                .map_or(i64::MAX, |time| now.saturating_sub(time.as_second()));
            if age > i64::try_from(KEPT_FOR.as_secs()).unwrap_or(i64::MAX)
                && let Err(error) = disk::remove(&entry.path())
            {
                tracing::warn!(%error, "what a pull has left cannot be removed");
            }
        }
    }

    /// The pulls under way, and the last that ended.
    #[must_use]
    pub fn list(&self) -> Vec<ImagePull> {
        let books = self.books();
        let under_way = books.under_way.values().map(|pull| pull.borrow().clone());
        under_way.chain(books.ended.iter().cloned()).collect()
    }

    /// The newest image in the store of this name or reference. Blocks.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<StoredImage> {
        let plain = self.store.by_name(&ImageRef(name.to_owned())).ok();
        plain.or_else(|| {
            let whole = PullPolicy::reference(name).ok()?.whole();
            self.store.by_name(&ImageRef(whole)).ok()
        })
    }

    /// Begins what [`Puller::ensure`] does, unless it is under way, and says how far it is.
    ///
    /// # Errors
    /// As [`Puller::ensure`], as far as it is known without asking a registry.
    pub fn begin(self: &Arc<Self>, reference: &str) -> Result<ImagePull, NodeError> {
        let pull = self.joined(reference)?;
        let now = pull.borrow().clone();
        Ok(now)
    }

    /// Makes what `reference` means now the newest image of that name in the store. Whoever asks
    /// while it is under way waits for the same pull; giving up waiting does not end it.
    ///
    /// # Errors
    /// [`NodeError::Pull`], and `NoCapacity` when too many are under way.
    pub async fn ensure(self: &Arc<Self>, reference: &str) -> Result<ImageInfo, NodeError> {
        let mut pull = self.joined(reference)?;
        let ended = pull.wait_for(|pull| pull.outcome.is_some()).await;
        match ended.map(|pull| pull.outcome.clone()) {
            Ok(Some(outcome)) => outcome,
            Ok(None) | Err(_) => Err(NodeError::Cancelled),
        }
    }

    fn joined(self: &Arc<Self>, reference: &str) -> Result<watch::Receiver<ImagePull>, NodeError> {
        let reference = PullPolicy::reference(reference).map_err(|e| e.to_node_error())?;
        // Before anything is remembered: this is what strangers can ask for most cheaply.
        self.policy.sources(&reference).map_err(|e| e.to_node_error())?;
        let name = reference.whole();
        let mut books = self.books();
        if let Some(pull) = books.under_way.get(&name) {
            return Ok(pull.clone());
        }
        if books.under_way.len() >= MAX_UNDER_WAY {
            return Err(NodeError::NoCapacity("too many images are being pulled".to_owned()));
        }
        let (report, pull) = watch::channel(ImagePull {
            reference: name.clone(),
            step: PullStep::Waiting,
            done_bytes: 0,
            total_bytes: 0,
            outcome: None,
        });
        books.under_way.insert(name.clone(), pull.clone());
        drop(books);
        let puller = Arc::clone(self);
        self.tasks.spawn(async move {
            let [one, other] = &puller.ends;
            let outcome = tokio::select! {
                biased;
                () = one.cancelled() => Err(NodeError::Cancelled),
                () = other.cancelled() => Err(NodeError::Cancelled),
                outcome = puller.pull(&reference, &report) => match outcome {
                    Ok(image) => Ok(image.info()),
                    Err(error) => {
                        tracing::warn!(image = name, %error, "an image could not be pulled");
                        Err(error.to_node_error())
                    }
                },
            };
            let mut books = puller.books();
            books.under_way.remove(&name);
            report.send_modify(|pull| pull.outcome = Some(outcome));
            books.ended.retain(|ended| ended.reference != name);
            books.ended.push_back(report.borrow().clone());
            if books.ended.len() > MAX_ENDED {
                books.ended.pop_front();
            }
        });
        Ok(pull)
    }

    fn books(&self) -> std::sync::MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn pull(
        &self,
        reference: &Reference,
        report: &watch::Sender<ImagePull>,
    ) -> Result<StoredImage, PullError> {
        let _turn = self.turns.acquire().await;
        let mut outcome =
            Err(PullError::NotPermitted { registry: reference.registry().to_owned() });
        for source in self.policy.sources(reference)? {
            let login = login_for(self.policy.auth_file.as_deref(), &source.host)?;
            let mut repository = Repository::new(source, reference, login)?;
            outcome = self.pull_from(&mut repository, reference, report).await;
            match &outcome {
                Err(error) if error.is_of_the_source() => {
                    tracing::info!(%error, host = repository.host(), "trying the next source");
                }
                Ok(_) | Err(_) => break,
            }
        }
        outcome
    }

    async fn pull_from(
        &self,
        repository: &mut Repository,
        reference: &Reference,
        report: &watch::Sender<ImagePull>,
    ) -> Result<StoredImage, PullError> {
        report.send_modify(|pull| {
            (pull.step, pull.done_bytes, pull.total_bytes) = (PullStep::Resolving, 0, 0);
        });
        let (manifest_digest, contents) = self.resolve(repository, reference).await?;
        let name = ImageRef(reference.whole());
        // A pull under way has its reference to itself in this process, two references to the same
        // manifest have two directories, and another server on the same images waits.
        let own = digest_bytes(format!("{name}\n{manifest_digest}").as_bytes()).0;
        let directory = self.store.directory().join(PULLS).join(digits(&own));
        let (store, ours) = (self.store.clone(), directory.clone());
        let (of_this_name, wanted) = (name.clone(), manifest_digest.clone());
        let prepared = blocking(move || {
            make_private(ours.parent().unwrap_or(&ours))?;
            let lock = FileLock::wait(&ours.with_extension("lock"), &mut || {})?;
            let is_it = |image: &StoredImage| image.manifest.recipe_digest == wanted;
            let present = store.by_name(&of_this_name).ok().filter(is_it);
            if present.is_none() {
                make_private(&ours)?;
            }
            Ok((lock, present))
        });
        let (lock, present) = prepared.await?;
        if let Some(image) = present {
            return Ok(image);
        }
        let config_bytes = contents.config.size_bytes;
        report.send_modify(|pull| {
            pull.step = PullStep::Downloading;
            pull.total_bytes = contents.transfer_bytes().saturating_add(config_bytes);
        });
        let count = |bytes: i64| {
            report.send_modify(|pull| {
                pull.done_bytes =
                    pull.done_bytes.saturating_add_signed(bytes).min(pull.total_bytes);
            });
        };
        let blobs = contents.layers.iter().map(|(blob, _)| blob);
        for blob in [&contents.config].into_iter().chain(blobs) {
            if let Err(error) = fetch(repository, blob, &directory, &count).await {
                if !error.is_of_the_source() {
                    blocking(move || Ok(disk::remove(&directory)?)).await?;
                }
                return Err(error);
            }
        }
        report.send_modify(|pull| pull.step = PullStep::Unpacking);
        let assembly = Assembly {
            store: self.store.clone(),
            name,
            registry: reference.registry().to_owned(),
            manifest_digest,
            contents,
            directory: directory.clone(),
            limits: self.policy.limits,
            now: (self.now)(),
        };
        let on_disk = report.clone();
        blocking(move || {
            // Until the work is done, also when nobody waits for it any more.
            let _lock = lock;
            let made = assembly.run(&|| on_disk.send_modify(|pull| pull.step = PullStep::Building));
            // Nothing of it is of use any more, whichever way it went: what is wrong now is wrong
            // the next time.
            let removed = disk::remove(&directory);
            let made = made?;
            removed?;
            Ok(made)
        })
        .await
    }

    /// The digest of the manifest for this machine, and what it says.
    async fn resolve(
        &self,
        repository: &mut Repository,
        reference: &Reference,
    ) -> Result<(String, Contents), PullError> {
        let which = reference.digest().or(reference.tag()).unwrap_or("latest");
        let mut document = repository.manifest(which).await?;
        if let Found::Index(digest) = documents::read(&document, &self.policy.limits)? {
            document = repository.manifest(&digest).await?;
        }
        match documents::read(&document, &self.policy.limits)? {
            Found::Manifest(contents) => Ok((document.digest, contents)),
            Found::Index(_) => Err(PullError::refused("its index leads to another index")),
        }
    }
}

/// Everything is on disk and verified; what is left is work.
struct Assembly {
    store: ImageStore,
    name: ImageRef,
    registry: String,
    manifest_digest: String,
    contents: Contents,
    directory: PathBuf,
    limits: super::PullLimits,
    now: Timestamp,
}

impl Assembly {
    fn run(self, on_building: &dyn Fn()) -> Result<StoredImage, PullError> {
        let blob = |digest: &str| self.directory.join(digits(digest));
        let config = read_up_to(&blob(&self.contents.config.digest), u64::MAX)?;
        let layers = self.contents.layers.len();
        let mut configuration = documents::configuration(&config, layers)?;
        let mut tree = Tree::new();
        let mut budget = Budget::new(self.limits);
        let mut unpacked = Vec::new();
        let numbered = (0_u32..).zip(self.contents.layers.iter().zip(&configuration.diff_ids));
        for (number, ((layer, compression), diff_id)) in numbered {
            let archive = self.directory.join(format!("layer-{number}.tar"));
            layer::decompress(&blob(&layer.digest), *compression, &archive, diff_id, &mut budget)?;
            layer::apply(&archive, number, &mut tree, &mut budget)?;
            unpacked.push(File::open(&archive).map_err(ImageError::file("open", &archive))?);
        }
        let passwd = tree.file(b"etc/passwd").map(|content| {
            let archive = self.directory.join(format!("layer-{}.tar", content.layer));
            read_part(&archive, content.offset, content.length.min(MAX_PASSWD_BYTES))
        });
        let passwd = passwd.transpose()?.unwrap_or_default();
        let passwd = String::from_utf8_lossy(&passwd);
        configuration.defaults.user =
            configuration.defaults.user.map(|user| login_of(&user, &passwd));
        if let Some(directory) = &configuration.defaults.working_dir {
            // As every engine does that starts a container.
            tree.ensure_directory(directory.as_bytes())?;
        }
        on_building();
        let uuid = uuid_for(&self.name);
        let disk = self.directory.join(DISK_FILE);
        disk::make(&tree, &mut unpacked, &uuid, &self.directory, &disk)?;
        make_sparse(&disk);
        let metadata = fs::metadata(&disk).map_err(ImageError::file("inspect", &disk))?;
        let manifest = ImageManifest {
            format: FORMAT,
            name: self.name,
            description: format!("Pulled from {}", self.registry),
            category: "pulled".to_owned(),
            min_memory_mib: 128,
            allocated_bytes: std::os::unix::fs::MetadataExt::blocks(&metadata) * 512,
            disk: SealedFile::describe(&disk)?,
            built_at: self.now,
            recipe_digest: self.manifest_digest,
            packages: Vec::new(),
            oci: Some(OciOrigin { defaults: configuration.defaults }),
        };
        // Only now: another image may be built for minutes while ours was made.
        let lock = self.store.lock(&mut || tracing::info!("waiting for another build"))?;
        let staging = lock.staging("pulled")?;
        let target = staging.path.join(DISK_FILE);
        fs::rename(&disk, &target).map_err(ImageError::file("keep", &target))?;
        Ok(lock.publish_image(staging, &manifest)?)
    }
}

fn read_up_to(path: &Path, limit: u64) -> Result<Vec<u8>, PullError> {
    read_part(path, 0, limit)
}

fn read_part(path: &Path, offset: u64, length: u64) -> Result<Vec<u8>, PullError> {
    use std::io::{Seek, SeekFrom};
    let mut content = Vec::new();
    File::open(path)
        .and_then(|mut file| {
            file.seek(SeekFrom::Start(offset))?;
            file.take(length).read_to_end(&mut content)
        })
        .map_err(ImageError::file("read", path))?;
    Ok(content)
}

/// Makes a directory that nobody else on this host can enter: what is in it may be set-user.
fn make_private(directory: &Path) -> Result<(), PullError> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .map_err(|source| ImageError::file("make", directory)(source).into())
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, PullError> + Send + 'static,
) -> Result<T, PullError> {
    outcome_of(tokio::task::spawn_blocking(work)).await
}
