//! The root disk of a running QEMU: the chain of files the guest sees as one disk.
//!
//! Nodes are named by us (see [`super::command_line`]): `base`, `layer-N`, `root`, and for every
//! overlay pushed since `overlay-N-I`, whose file is in the file set N and has the inode I. What the
//! chain is now is asked of QEMU each time, so that a VM that was taken over from an earlier life
//! needs no record of it; and whether a file is its top already can be told by the name.

use std::{fs::File, io, os::fd::OwnedFd, os::unix::fs::MetadataExt, time::Duration};

use serde_json::{Value, json};

use super::{
    command_line::{BASE_NODE, LAYER_NODE, ROOT_NODE},
    control::{self, ANSWER_DEADLINE},
    flatten,
    qmp::QmpClient,
    volumes,
};
use crate::{DiskSpec, VmmError};

const OVERLAY_NODE: &str = "overlay-";
/// The flattening of the root disk.
const FLATTEN_JOB: &str = "flatten-root";

/// How QEMU begins to say that there is no node of a name.
const NO_SUCH_NODE: &str = "Failed to find node";

/// The longest chain believed in: the process may be anybody's by now.
pub(super) const MAX_CHAIN: usize = DiskSpec::MAX_LAYERS + 2;

/// The nodes from the one the guest writes to down to the base.
async fn chain(qmp: &QmpClient) -> Result<Vec<String>, VmmError> {
    let answer = qmp.execute("query-blockstats", None, ANSWER_DEADLINE).await?;
    nodes_in(&answer).ok_or_else(|| no_disk("query-blockstats"))
}

fn nodes_in(blockstats: &Value) -> Option<Vec<String>> {
    // The guest has one disk beside its volumes; nodes that are no device's are not listed.
    nodes_below(blockstats.as_array()?.iter().find(|one| is_root(&one["node-name"]))?)
}

/// The chain that this node is the top of, as `query-blockstats` has it.
pub(super) fn nodes_below(mut node: &Value) -> Option<Vec<String>> {
    let mut nodes = Vec::new();
    while let Some(name) = node["node-name"].as_str() {
        nodes.push(name.to_owned());
        if nodes.len() > MAX_CHAIN {
            return None;
        }
        node = &node["backing"];
    }
    Some(nodes)
}

/// Whether a device stands on this node that is no slot for volumes.
fn is_root(node: &Value) -> bool {
    node.as_str().is_some_and(|name| !volumes::is_device_node(name))
}

fn no_disk(command: &'static str) -> VmmError {
    VmmError::Refused { command, reason: "it has no disk".into() }
}

/// The node of a pushed overlay. A number of five digits and any inode fit into the 31 characters of
/// a name.
fn overlay_node(number: u64, inode: u64) -> String {
    format!("{OVERLAY_NODE}{number}-{inode:x}")
}

/// The number of a pushed overlay, and its file's inode.
fn pushed_overlay(node: &str) -> Option<(u64, u64)> {
    let (number, inode) = node.strip_prefix(OVERLAY_NODE)?.split_once('-')?;
    Some((number.parse().ok()?, u64::from_str_radix(inode, 16).ok()?))
}

/// See [`crate::Vm::push_overlay`]. `file` names the new overlay and is the VM's user's already.
pub(super) async fn push_overlay(qmp: &QmpClient, file: OwnedFd) -> Result<(), VmmError> {
    let (file, inode) = with_inode(file)
        .map_err(|source| VmmError::Io { context: "look at the overlay".into(), source })?;
    let chain = chain(qmp).await?;
    let top = chain.first().ok_or_else(|| no_disk("blockdev-snapshot"))?;
    // An inode is not given to another file as long as somebody has the first one open.
    if pushed_overlay(top).is_some_and(|(_, of_top)| of_top == inode) {
        return Ok(());
    }
    flatten::stop(qmp, FLATTEN_JOB).await?;
    // The chain is the overlay, its layers and the base.
    if chain.len() >= MAX_CHAIN {
        let reason = format!("it has {} layers already", DiskSpec::MAX_LAYERS);
        return Err(VmmError::Refused { command: "blockdev-snapshot", reason });
    }
    // Left by a push that was broken off, if at all.
    forget_unused(qmp, &chain, Kind::Pushed).await?;
    check_files_are_held(qmp, &chain).await?;
    let numbers = chain.iter().filter_map(|node| pushed_overlay(node));
    let number = numbers.map(|(number, _)| number).max().unwrap_or(0) + 1;
    let node = overlay_node(number, inode);

    let pushed = put_on_top(qmp, number, file, &node, top).await;
    if let Err(VmmError::Refused { .. }) = pushed {
        forget(qmp, &node, Some(number)).await;
    }
    pushed
}

/// Opens a new overlay as `node` and has the disk whose top is `top` written there.
pub(super) async fn put_on_top(
    qmp: &QmpClient,
    set: u64,
    file: OwnedFd,
    node: &str,
    top: &str,
) -> Result<(), VmmError> {
    let file = hand_over(qmp, set, node, file).await?;
    let overlay = json!({
        "node-name": node, "driver": "qcow2", "discard": "unmap", "backing": null,
        "file": { "driver": "file", "filename": file },
    });
    control::run(qmp, "blockdev-add", overlay).await?;
    control::run(qmp, "blockdev-snapshot", json!({ "node": top, "overlay": node })).await
}

/// Hands the file of a node to the process and answers by which path it opens it. By the number's path
/// and not by the set's: that opens the file anew, with the rights its mode gives, and locks that end
/// with the opening. The set bears the node's name.
pub(super) async fn hand_over(
    qmp: &QmpClient,
    set: u64,
    node: &str,
    file: OwnedFd,
) -> Result<String, VmmError> {
    let set = json!({ "fdset-id": set, "opaque": node });
    let answer = qmp.execute_with_file("add-fd", set, file, ANSWER_DEADLINE).await?;
    match answer["fd"].as_u64() {
        Some(fd) => Ok(format!("/proc/self/fd/{fd}")),
        None => {
            let reason = "it did not say under which number".to_owned();
            Err(VmmError::Refused { command: "add-fd", reason })
        }
    }
}

/// QEMU opens what becomes a layer once more, by the number of the file that it was handed. Had it
/// closed that file, the number could be another's by now: then nothing is put on top.
async fn check_files_are_held(qmp: &QmpClient, chain: &[String]) -> Result<(), VmmError> {
    let sets = qmp.execute("query-fdsets", None, ANSWER_DEADLINE).await?;
    match not_held_in(&sets, chain) {
        None => Ok(()),
        Some(node) => {
            let reason = format!("it does not hold the file of {node} any more");
            Err(VmmError::Refused { command: "blockdev-snapshot", reason })
        }
    }
}

/// The first pushed overlay of the chain whose file is in no set.
fn not_held_in<'a>(query_fdsets: &Value, chain: &'a [String]) -> Option<&'a str> {
    let sets = query_fdsets.as_array().into_iter().flatten();
    let held: Vec<u64> = sets.filter_map(|set| set["fdset-id"].as_u64()).collect();
    let mut pushed = chain.iter().filter_map(|node| Some((node.as_str(), pushed_overlay(node)?.0)));
    pushed.find(|(_, number)| !held.contains(number)).map(|(node, _)| node)
}

/// See [`crate::Vm::flatten_disk`]; the caller sets the bound.
pub(super) async fn flatten(qmp: &QmpClient) -> Result<(), VmmError> {
    flatten::run(qmp, FLATTEN_JOB, BASE_NODE, || chain(qmp)).await?;
    forget_unused(qmp, &chain(qmp).await?, Kind::All).await
}

/// See [`crate::Vm::grow_disk`].
pub(super) async fn grow(
    qmp: &QmpClient,
    size_bytes: u64,
    within: Duration,
) -> Result<(), VmmError> {
    let answer = qmp.execute("query-block", None, within).await?;
    let (node, now_bytes) = disk_in(&answer).ok_or_else(|| no_disk("block_resize"))?;
    if size_bytes < now_bytes {
        let reason = format!("it has {now_bytes} bytes and never shrinks");
        return Err(VmmError::Refused { command: "block_resize", reason });
    }
    let arguments = json!({ "node-name": node, "size": size_bytes });
    qmp.execute("block_resize", Some(arguments), within).await.map(|_| ())
}

/// The node that the guest writes to, and the disk's size in bytes.
fn disk_in(query_block: &Value) -> Option<(&str, u64)> {
    let mut disks = query_block.as_array()?.iter().map(|disk| &disk["inserted"]);
    let disk = disks.find(|disk| is_root(&disk["node-name"]))?;
    Some((disk["node-name"].as_str()?, disk["image"]["virtual-size"].as_u64()?))
}

pub(super) fn with_inode(file: OwnedFd) -> io::Result<(OwnedFd, u64)> {
    let file = File::from(file);
    let inode = file.metadata()?.ino();
    Ok((file.into(), inode))
}

/// Nodes of ours.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Overlays that were pushed.
    Pushed,
    /// Those, and the ones that came with the process.
    All,
}

/// Closes the files of nodes that are in no chain any more.
///
/// Which there are is not asked of QEMU (`query-named-block-nodes`): that looks at every node, also at
/// the filter of a flattening that has just lost what it stood on, and version 7.2 dies of it. The
/// pushed ones are known by the sets of their files, which bear their names, and the names of the rest
/// are fixed.
async fn forget_unused(qmp: &QmpClient, chain: &[String], kind: Kind) -> Result<(), VmmError> {
    let sets = qmp.execute("query-fdsets", None, ANSWER_DEADLINE).await?;
    for node in ours(&sets, kind).iter().filter(|node| !chain.contains(node)) {
        let set = pushed_overlay(node).map(|(number, _)| number);
        forget(qmp, node, set).await;
    }
    Ok(())
}

/// The names of nodes that there may be, from the top down: what something stands on is not removed.
fn ours(query_fdsets: &Value, kind: Kind) -> Vec<String> {
    let sets = query_fdsets.as_array().into_iter().flatten();
    let files = sets.flat_map(|set| set["fds"].as_array().into_iter().flatten());
    let names = files.filter_map(|file| file["opaque"].as_str());
    let numbered = names.filter_map(|name| Some((pushed_overlay(name)?, name.to_owned())));
    let mut pushed: Vec<_> = numbered.collect();
    pushed.sort_by_key(|((number, _), _)| std::cmp::Reverse(*number));
    let mut ours: Vec<String> = pushed.into_iter().map(|(_, name)| name).collect();
    if kind == Kind::All {
        ours.push(ROOT_NODE.to_owned());
        let layers = (1..=DiskSpec::MAX_LAYERS).rev();
        ours.extend(layers.map(|layer| format!("{LAYER_NODE}{layer}")));
    }
    ours
}

/// What became of a node that was to be forgotten.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Forgotten {
    /// It is not there, nor is its file.
    Gone,
    /// Something stands on it, or nobody knows.
    InUse,
}

/// Forgets a node and its file. That there is none is as good; what is in use stays.
pub(super) async fn forget(qmp: &QmpClient, node: &str, set: Option<u64>) -> Forgotten {
    match control::run(qmp, "blockdev-del", json!({ "node-name": node })).await {
        Ok(()) => {}
        Err(VmmError::Refused { reason, .. }) if reason.starts_with(NO_SUCH_NODE) => {}
        Err(_) => return Forgotten::InUse,
    }
    if let Some(set) = set {
        let _ = control::run(qmp, "remove-fd", json!({ "fdset-id": set })).await;
    }
    Forgotten::Gone
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_chain_is_read_from_the_top_to_the_base() {
        let stats = json!([{
            "device": "", "qdev": "root-disk", "node-name": "overlay-2",
            "backing": { "node-name": "root", "backing": { "node-name": "base" } },
        }]);
        assert_eq!(nodes_in(&stats).unwrap(), ["overlay-2", "root", "base"]);
        assert_eq!(nodes_in(&json!([])), None);
    }

    #[test]
    fn a_volume_is_not_taken_for_the_root_disk() {
        let stats = json!([{ "node-name": "volume-0" }, { "node-name": "root" }]);
        assert_eq!(nodes_in(&stats).unwrap(), ["root"]);
        let volume = json!({ "node-name": "volume-0", "image": { "virtual-size": 7 } });
        assert_eq!(disk_in(&json!([{ "inserted": volume }])), None);
    }

    #[test]
    fn an_overlay_is_known_by_the_inode_in_its_name() {
        let longest = overlay_node(99_999, u64::MAX);
        assert!(longest.len() <= 31, "{longest}");
        assert_eq!(pushed_overlay(&longest), Some((99_999, u64::MAX)));
        assert_eq!(pushed_overlay("root"), None);
    }

    #[test]
    fn an_overlay_whose_file_was_closed_is_noticed() {
        let chain = ["overlay-2-7f", "overlay-1-a", "root", "base"].map(str::to_owned);
        let sets = json!([{ "fdset-id": 2, "fds": [{ "fd": 30 }] }]);
        assert_eq!(not_held_in(&sets, &chain), Some("overlay-1-a"));
        let sets = json!([{ "fdset-id": 1, "fds": [] }, { "fdset-id": 2, "fds": [] }]);
        assert_eq!(not_held_in(&sets, &chain), None);
    }

    #[test]
    fn what_may_be_forgotten_is_named_from_the_top_down() {
        let set = |number: u64, name: Option<&str>| {
            let file = match name {
                Some(name) => json!({ "fd": 30, "opaque": name }),
                None => json!({ "fd": 30 }),
            };
            json!({ "fdset-id": number, "fds": [file] })
        };
        let sets = json!([
            set(9, Some("overlay-9-a")),
            set(10, Some("overlay-10-7f")),
            set(100_000, None),
            set(100_100, Some("v1-top-7f")),
        ]);
        let pushed = ours(&sets, Kind::Pushed);
        assert_eq!(pushed, ["overlay-10-7f", "overlay-9-a"]);
        let all = ours(&sets, Kind::All);
        assert_eq!(all[..2], pushed);
        assert_eq!((&*all[2], &**all.last().unwrap()), ("root", "layer-1"));
        assert_eq!(all.len(), 3 + DiskSpec::MAX_LAYERS);
    }

    #[test]
    fn a_chain_longer_than_any_can_be_is_not_believed() {
        let mut stats = json!({ "node-name": "base" });
        for _ in 0..MAX_CHAIN {
            stats = json!({ "node-name": "layer", "backing": stats });
        }
        assert_eq!(nodes_in(&json!([stats])), None);
    }
}
