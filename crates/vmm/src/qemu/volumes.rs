//! Volumes: further disks of a QEMU that runs.
//!
//! The machine `microvm` has no bus on which a device could appear while it runs. So each machine has
//! the devices from its start, each on a node `volume-N` that hands everything down to the node below
//! it, and it is that node which is exchanged (`blockdev-reopen`): from `empty-N`, which has no sector,
//! to the volume's chain and back. The guest learns of it when it looks at the device anew, which its
//! agent has the kernel do. A saved state holds the device and nothing of what is below.
//!
//! The nodes of a volume in slot N are named `vN-base`, `vN-layer-I` and, for the overlay it came with
//! and each that was pushed since, `vN-top-INODE`. As with [`super::chain`], what there is now is asked
//! of QEMU each time.

use std::os::fd::OwnedFd;

use serde_json::{Value, json};
use skerry_model::VolumeSlot;

use super::{
    chain::{self, Forgotten, MAX_CHAIN, hand_over, nodes_below, with_inode},
    control::{self, ANSWER_DEADLINE},
    flatten,
    qmp::QmpClient,
};
use crate::{DiskSpec, VmmError};

const DEVICE_NODE: &str = "volume-";

/// The file sets of volumes begin here, far above those of pushed overlays.
const FIRST_FILE_SET: u64 = 100_000;
/// More than a volume has files.
const FILE_SETS_PER_SLOT: u64 = 100;
const _: () = assert!(FILE_SETS_PER_SLOT > DiskSpec::MAX_LAYERS as u64 + 2);

/// The files of a volume, opened, the overlay already the VM's user's.
pub(super) struct Files {
    pub(super) base: OwnedFd,
    /// The lowest first.
    pub(super) layers: Vec<OwnedFd>,
    pub(super) overlay: OwnedFd,
}

/// The node on which the slot's device stands; also the device's name and the disk's serial number.
pub(super) fn device_node(slot: VolumeSlot) -> String {
    slot.device_serial()
}

pub(super) fn is_device_node(node: &str) -> bool {
    node.starts_with(DEVICE_NODE)
}

/// What is below the device while the slot is empty.
pub(super) fn empty_node(slot: VolumeSlot) -> String {
    format!("empty-{slot}")
}

/// The device's node, standing on `below`.
pub(super) fn device_options(slot: VolumeSlot, below: &str) -> Value {
    json!({
        "node-name": device_node(slot), "driver": "raw", "discard": "unmap", "file": below,
    })
}

fn prefix(slot: VolumeSlot) -> String {
    format!("v{slot}-")
}

fn top_node(slot: VolumeSlot, inode: u64) -> String {
    format!("{}top-{inode:x}", prefix(slot))
}

/// See [`crate::Vm::attach_volume`].
pub(super) async fn attach(
    qmp: &QmpClient,
    slot: VolumeSlot,
    files: Files,
) -> Result<(), VmmError> {
    let (overlay, inode) = with_inode(files.overlay)
        .map_err(|source| VmmError::Io { context: "look at the overlay".into(), source })?;
    let top = top_node(slot, inode);
    let there = nodes_of(qmp, slot).await?;
    // An inode is not given to another file as long as somebody has the first one open.
    if there.iter().any(|node| node.name == top) {
        return stand_on(qmp, slot, &top).await;
    }
    // Left by an attempt that was broken off, if it can be removed.
    forget(qmp, there).await;
    if !nodes_of(qmp, slot).await?.is_empty() {
        let reason = format!("slot {slot} has another volume");
        return Err(VmmError::Refused { command: "blockdev-add", reason });
    }
    let attached = async {
        let mut set = first_file_set(slot);
        let mut below = format!("{}base", prefix(slot));
        let file = hand_over(qmp, set, &below, files.base).await?;
        let base = json!({
            "node-name": below, "driver": "raw", "read-only": true, "auto-read-only": false,
            "file": { "driver": "file", "filename": file },
        });
        control::run(qmp, "blockdev-add", base).await?;
        for (index, layer) in files.layers.into_iter().enumerate() {
            set += 1;
            let node = format!("{}layer-{}", prefix(slot), index + 1);
            let file = hand_over(qmp, set, &node, layer).await?;
            let layer = json!({
                "node-name": node, "driver": "qcow2",
                "read-only": true, "auto-read-only": false, "backing": below,
                "file": { "driver": "file", "filename": file },
            });
            control::run(qmp, "blockdev-add", layer).await?;
            below = node;
        }
        let file = hand_over(qmp, set + 1, &top, overlay).await?;
        let overlay = json!({
            "node-name": top, "driver": "qcow2", "discard": "unmap", "backing": below,
            "file": { "driver": "file", "filename": file },
        });
        control::run(qmp, "blockdev-add", overlay).await?;
        stand_on(qmp, slot, &top).await
    }
    .await;
    if let Err(VmmError::Refused { .. }) = attached {
        forget(qmp, nodes_of(qmp, slot).await?).await;
    }
    attached
}

/// See [`crate::Vm::detach_volume`].
pub(super) async fn detach(qmp: &QmpClient, slot: VolumeSlot) -> Result<(), VmmError> {
    let there = nodes_of(qmp, slot).await?;
    if there.is_empty() {
        return Ok(());
    }
    flatten::stop(qmp, &flatten_job(slot)).await?;
    stand_on(qmp, slot, &empty_node(slot)).await?;
    forget(qmp, there).await;
    match nodes_of(qmp, slot).await?.is_empty() {
        true => Ok(()),
        false => {
            let reason = format!("slot {slot} is still in use");
            Err(VmmError::Refused { command: "blockdev-del", reason })
        }
    }
}

/// See [`crate::Vm::push_volume_overlay`]. `file` names the new overlay and is the VM's user's already.
pub(super) async fn push(qmp: &QmpClient, slot: VolumeSlot, file: OwnedFd) -> Result<(), VmmError> {
    let (file, inode) = with_inode(file)
        .map_err(|source| VmmError::Io { context: "look at the overlay".into(), source })?;
    let top = top_node(slot, inode);
    let chain = chain(qmp, slot).await?;
    let Some(former) = chain.first() else { return Err(is_empty("blockdev-snapshot", slot)) };
    if *former == top {
        return Ok(());
    }
    flatten::stop(qmp, &flatten_job(slot)).await?;
    if chain.len() >= MAX_CHAIN {
        let reason = format!("it has {} layers already", DiskSpec::MAX_LAYERS);
        return Err(VmmError::Refused { command: "blockdev-snapshot", reason });
    }
    // Left by a push that was broken off, if at all.
    forget_unused(qmp, slot, &chain).await?;
    let pushed = async {
        let set = free_file_set(qmp, slot).await?;
        chain::put_on_top(qmp, set, file, &top, former).await
    }
    .await;
    if let Err(VmmError::Refused { .. }) = pushed {
        forget_unused(qmp, slot, &chain).await?;
    }
    pushed
}

/// See [`crate::Vm::flatten_volume`]; the caller sets the bound.
pub(super) async fn flatten(qmp: &QmpClient, slot: VolumeSlot) -> Result<(), VmmError> {
    if chain(qmp, slot).await?.is_empty() {
        return Err(is_empty("block-stream", slot));
    }
    let base = format!("{}base", prefix(slot));
    flatten::run(qmp, &flatten_job(slot), &base, || chain(qmp, slot)).await?;
    forget_unused(qmp, slot, &chain(qmp, slot).await?).await
}

/// See [`crate::Vm::grow_volume`]; the caller sets the bound. What the device's node hands down it asks of
/// the overlay below.
pub(super) async fn grow(
    qmp: &QmpClient,
    slot: VolumeSlot,
    size_bytes: u64,
) -> Result<(), VmmError> {
    const COMMAND: &str = "block_resize";
    if chain(qmp, slot).await?.is_empty() {
        return Err(is_empty(COMMAND, slot));
    }
    let node = device_node(slot);
    let disks = qmp.execute("query-block", None, ANSWER_DEADLINE).await?;
    let mut disks = disks.as_array().into_iter().flatten().map(|disk| &disk["inserted"]);
    let now_bytes = disks
        .find(|disk| disk["node-name"] == *node)
        .and_then(|disk| disk["image"]["virtual-size"].as_u64())
        .ok_or_else(|| is_empty(COMMAND, slot))?;
    if size_bytes < now_bytes {
        let reason = format!("it has {now_bytes} bytes and never shrinks");
        return Err(VmmError::Refused { command: COMMAND, reason });
    }
    let arguments = json!({ "node-name": node, "size": size_bytes });
    qmp.execute(COMMAND, Some(arguments), ANSWER_DEADLINE).await.map(|_| ())
}

fn flatten_job(slot: VolumeSlot) -> String {
    format!("flatten-v{slot}")
}

fn is_empty(command: &'static str, slot: VolumeSlot) -> VmmError {
    VmmError::Refused { command, reason: format!("slot {slot} is empty") }
}

/// The nodes of the slot's volume from the one the guest writes to down to the base; none while it is
/// empty.
async fn chain(qmp: &QmpClient, slot: VolumeSlot) -> Result<Vec<String>, VmmError> {
    let answer = qmp.execute("query-blockstats", None, ANSWER_DEADLINE).await?;
    chain_in(&answer, slot).ok_or_else(|| {
        let reason = format!("it has no slot {slot}");
        VmmError::Refused { command: "query-blockstats", reason }
    })
}

fn chain_in(blockstats: &Value, slot: VolumeSlot) -> Option<Vec<String>> {
    let device = device_node(slot);
    let mut devices = blockstats.as_array()?.iter();
    let device = devices.find(|one| one["node-name"] == *device)?;
    // What the device's own node hands everything down to.
    let mut nodes = nodes_below(&device["parent"])?;
    nodes.retain(|node| *node != empty_node(slot));
    Some(nodes)
}

/// Forgets nodes of the slot that its device does not stand on.
async fn forget_unused(
    qmp: &QmpClient,
    slot: VolumeSlot,
    chain: &[String],
) -> Result<(), VmmError> {
    let mut unused = nodes_of(qmp, slot).await?;
    unused.retain(|node| !chain.contains(&node.name));
    forget(qmp, unused).await;
    Ok(())
}

/// A number of the slot under which no file was handed over.
async fn free_file_set(qmp: &QmpClient, slot: VolumeSlot) -> Result<u64, VmmError> {
    let sets = qmp.execute("query-fdsets", None, ANSWER_DEADLINE).await?;
    let taken = file_sets_in(&sets, slot);
    let first = first_file_set(slot);
    let mut all = first..first + FILE_SETS_PER_SLOT;
    all.find(|set| !taken.contains(set)).ok_or_else(|| {
        let reason = "too many overlays were put on top of it".to_owned();
        VmmError::Refused { command: "add-fd", reason }
    })
}

fn file_sets_in(query_fdsets: &Value, slot: VolumeSlot) -> Vec<u64> {
    let first = first_file_set(slot);
    let sets = query_fdsets.as_array().into_iter().flatten();
    sets.filter_map(|set| set["fdset-id"].as_u64())
        .filter(|set| (first..first + FILE_SETS_PER_SLOT).contains(set))
        .collect()
}

/// Exchanges what the slot's device stands on. Requests under way are waited for.
async fn stand_on(qmp: &QmpClient, slot: VolumeSlot, below: &str) -> Result<(), VmmError> {
    let options = json!({ "options": [device_options(slot, below)] });
    control::run(qmp, "blockdev-reopen", options).await
}

fn first_file_set(slot: VolumeSlot) -> u64 {
    FIRST_FILE_SET + u64::from(slot.get()) * FILE_SETS_PER_SLOT
}

/// A node of a volume, or at least its file.
#[derive(Debug, PartialEq, Eq)]
struct Node {
    name: String,
    /// The number of the set its file is in.
    set: u64,
}

/// The nodes of the slot's volume, each before those it stands on: as their files bear their names,
/// for QEMU must not be asked (see [`chain::forget`]).
async fn nodes_of(qmp: &QmpClient, slot: VolumeSlot) -> Result<Vec<Node>, VmmError> {
    let sets = qmp.execute("query-fdsets", None, ANSWER_DEADLINE).await?;
    Ok(nodes_in(&sets, slot))
}

fn nodes_in(query_fdsets: &Value, slot: VolumeSlot) -> Vec<Node> {
    let prefix = prefix(slot);
    let named = query_fdsets.as_array().into_iter().flatten().filter_map(|set| {
        let name = set["fds"][0]["opaque"].as_str()?.to_owned();
        Some(Node { name, set: set["fdset-id"].as_u64()? })
    });
    let mut nodes: Vec<Node> = named.filter(|node| node.name.starts_with(&prefix)).collect();
    // From the top down: what something stands on cannot be removed.
    nodes.sort_by_key(|node| std::cmp::Reverse(height(&node.name[prefix.len()..])));
    nodes
}

/// How far up a node stands; what is none of ours is looked at first, and cannot be removed.
fn height(kind: &str) -> u64 {
    match (kind, kind.strip_prefix("layer-")) {
        ("base", _) => 0,
        (_, Some(number)) => number.parse().unwrap_or(u64::MAX - 1),
        (_, None) => u64::MAX,
    }
}

/// Forgets nodes and their files. What is in use stays.
async fn forget(qmp: &QmpClient, nodes: Vec<Node>) {
    let mut left = nodes;
    // Of the overlays pushed over each other the names do not say which is above which.
    loop {
        let before = left.len();
        let mut kept = Vec::new();
        for node in left {
            match chain::forget(qmp, &node.name, Some(node.set)).await {
                Forgotten::Gone => {}
                Forgotten::InUse => kept.push(node),
            }
        }
        left = kept;
        if left.is_empty() || left.len() == before {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volumes_nodes_are_found_from_the_top_down() {
        let slot = VolumeSlot::new(1).unwrap();
        let names = ["v1-base", "v1-layer-2", "v1-layer-10", "v1-top-7f", "v0-base", "overlay-1-a"];
        let sets = names.iter().zip(100_100_u64..);
        let sets: Vec<Value> = sets
            .map(|(name, set)| json!({ "fdset-id": set, "fds": [{ "fd": 9, "opaque": name }] }))
            .collect();
        let found = nodes_in(&Value::from(sets), slot);
        let found: Vec<_> = found.iter().map(|node| (&*node.name, node.set)).collect();
        let (top, upper, lower) =
            (("v1-top-7f", 100_103), ("v1-layer-10", 100_102), ("v1-layer-2", 100_101));
        assert_eq!(found, [top, upper, lower, ("v1-base", 100_100)]);
    }

    #[test]
    fn a_volumes_chain_is_what_its_device_stands_on() {
        let slot = VolumeSlot::new(1).unwrap();
        let top = json!({ "node-name": "v1-top-2", "backing": {
            "node-name": "v1-top-1", "backing": { "node-name": "v1-base" },
        } });
        let stats = |below: Value| json!([{ "node-name": "root" }, { "node-name": "volume-1", "parent": below }]);
        let chain = chain_in(&stats(top), slot).unwrap();
        assert_eq!(chain, ["v1-top-2", "v1-top-1", "v1-base"]);
        assert!(chain_in(&stats(json!({ "node-name": "empty-1" })), slot).unwrap().is_empty());
        assert_eq!(chain_in(&json!([]), slot), None);
    }

    #[test]
    fn a_name_has_room_for_any_inode() {
        let longest = top_node(VolumeSlot::new(VolumeSlot::COUNT - 1).unwrap(), u64::MAX);
        assert!(longest.len() <= 31, "{longest}");
    }
}
