//! An overlay of which the VMM does not say whether it is on top.

use std::{collections::VecDeque, fs, path::Path, sync::Mutex};

use async_trait::async_trait;
use skerry_model::{Timestamp, spec::ImageDigest};
use skerry_vmm::{Channel, Exit, Vm, VmmError, VmmRecord};

use super::*;
use crate::{
    NodeConfig, NodeEnvironment,
    disk::{Disk, Foundation},
    layout::Layout,
    saved::{Storage, test_ground::NoKeys},
};

/// A VM that only takes overlays, and answers as it was told.
struct Taciturn {
    record: VmmRecord,
    answers: Mutex<VecDeque<Answer>>,
    asked: Mutex<Vec<PathBuf>>,
}

#[derive(Clone, Copy)]
enum Answer {
    Done,
    Refused,
    Lost,
}

impl Taciturn {
    fn new(answers: &[Answer]) -> Self {
        let record = VmmRecord {
            driver: "taciturn".to_owned(),
            pid: 1,
            start_time_ticks: 1,
            boot_id: String::new(),
            run_dir: PathBuf::new(),
            console_log: PathBuf::new(),
            console_limit_bytes: 4096,
            fingerprint: String::new(),
            memory: skerry_vmm::GuestMemory::Own,
            memory_mib: 0,
        };
        let answers = Mutex::new(answers.iter().copied().collect());
        Self { record, answers, asked: Mutex::default() }
    }
}

#[async_trait]
impl Vm for Taciturn {
    fn record(&self) -> &VmmRecord {
        &self.record
    }

    async fn connect_guest(&self) -> Result<Box<dyn Channel>, VmmError> {
        Err(VmmError::Gone)
    }

    async fn kill(&self) -> Result<(), VmmError> {
        Ok(())
    }

    async fn wait_exit(&self) -> Exit {
        std::future::pending().await
    }

    async fn pause(&self, _within: Duration) -> Result<(), VmmError> {
        Ok(())
    }

    async fn resume(&self, _within: Duration) -> Result<(), VmmError> {
        Ok(())
    }

    async fn push_overlay(&self, overlay: &Path, _within: Duration) -> Result<(), VmmError> {
        self.asked.lock().unwrap().push(overlay.to_owned());
        match self.answers.lock().unwrap().pop_front().unwrap() {
            Answer::Done => Ok(()),
            Answer::Refused => Err(VmmError::Refused { command: "push", reason: "no".to_owned() }),
            Answer::Lost => Err(VmmError::Timeout("push")),
        }
    }
}

/// A disk with an overlay, in a data directory of its own.
fn disk() -> (tempfile::TempDir, Disk) {
    let dir = tempfile::tempdir().unwrap();
    let mut config = NodeConfig::new(dir.path().join("data"), dir.path().join("images"));
    config.memory_dir = Some(dir.path().join("memory"));
    let environment = NodeEnvironment {
        now: Arc::new(|| Timestamp::UNIX_EPOCH),
        seal: Arc::new(NoKeys),
        fill_random: {
            let drawn = Mutex::new(0_u8);
            Arc::new(move |bytes| {
                let mut drawn = drawn.lock().unwrap();
                *drawn += 1;
                bytes.fill(*drawn);
            })
        },
    };
    let layout = Layout::open(&config).unwrap();
    let storage = Storage::open(&layout, &config, &environment).unwrap();
    let place = layout.vms_dir().join("disk");
    fs::create_dir(&place).unwrap();
    let disk = storage.disks.at(&place);
    let image_digest = ImageDigest("sha256:0".to_owned());
    let foundation = Foundation { image_digest, layers: Vec::new(), size_bytes: 1 << 20 };
    disk.ensure(&foundation, 2 << 20).unwrap();
    (dir, disk)
}

#[tokio::test]
async fn a_lost_answer_is_asked_for_again_and_a_refusal_is_believed() {
    let overlay = Path::new("/overlay");
    for (answers, expected) in [
        (vec![Answer::Done], Overlay::OnTop),
        (vec![Answer::Refused], Overlay::Below),
        (vec![Answer::Lost, Answer::Done], Overlay::OnTop),
        (vec![Answer::Lost, Answer::Lost], Overlay::Unknown),
        // The first may still be on its way.
        (vec![Answer::Lost, Answer::Refused], Overlay::Unknown),
    ] {
        let vm = Taciturn::new(&answers);
        let (found, pushed) = push(&vm, Top::Root, overlay).await;
        assert_eq!((found, pushed.is_ok()), (expected, expected == Overlay::OnTop));
        assert_eq!(vm.asked.lock().unwrap().len(), answers.len());
    }
}

#[tokio::test]
async fn a_push_that_was_left_open_is_settled_by_what_the_vmm_says() {
    for (answers, layers, pending) in [
        (vec![Answer::Done], 1, false),
        (vec![Answer::Refused], 0, false),
        (vec![Answer::Lost, Answer::Lost], 0, true),
    ] {
        let (_dir, disk) = disk();
        let overlay = disk.begin_push().unwrap();
        let vm = Taciturn::new(&answers);
        let settled = settle_push(&vm, Top::Root, &disk).await;
        assert_eq!(settled.is_err(), pending);
        assert_eq!(vm.asked.lock().unwrap()[0], overlay);
        assert_eq!(disk.push_is_pending().unwrap(), pending);
        assert_eq!(disk.chain().unwrap().unwrap().layers.len(), layers);
        assert_eq!(overlay.exists(), layers == 1 || pending);
        // Nothing is asked of a VM whose disk is as it should be.
        if !pending {
            settle_push(&Taciturn::new(&[]), Top::Root, &disk).await.unwrap();
        }
    }
}
