//! What a tenant keeps in the variables of a workspace is in no file of the server's.

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde_json::json;

use crate::world::{WORKSPACES, World, bounded};

const SECRET: &str = "hunter2-and-nothing-else";
/// Says that a command has it, and not what it is: what commands print is in the log of commands.
const PROVE: &str = r#"printf %s "$PASSWORD" | sha256sum"#;
const PROOF: &str = "90bcb1e233895aa1e7a2f0b1d5eea5e63d9a8f28af3b1acb2d1ec086d88d4800  -\n";

/// The files below `dir` that hold the secret.
fn telling(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && !path.is_symlink() {
            found.extend(telling(&path));
        } else if path.is_file()
            && String::from_utf8_lossy(&fs::read(&path).unwrap()).contains(SECRET)
        {
            found.push(path);
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_file_below_the_data_directory_holds_the_value_of_a_variable() {
    bounded(async {
        let world = World::new();
        let server = world.start().await;
        let body = Some(json!({"name": "box", "memory_mib": 256, "env": {"PASSWORD": SECRET}}));
        let created = server.expect(201, "POST", WORKSPACES, body).await;
        let id = created["id"].as_str().unwrap().to_owned();
        server.reaches(&id, "running").await;
        assert_eq!(server.run(&id, PROVE).await, PROOF);
        assert_eq!(telling(&world.data_dir()), Vec::<PathBuf>::new());
        server.die().await;
        assert_eq!(telling(&world.data_dir()), Vec::<PathBuf>::new());
        // The keys that opened it are the ones in the file, also for the VM that was taken over.
        let server = world.start().await;
        assert_eq!(server.run(&id, PROVE).await, PROOF);
        server.end().await;
        assert_eq!(telling(&world.data_dir()), Vec::<PathBuf>::new());

        // Without them nothing is opened, and the VM is left alone.
        let vm = world.only_vm();
        let keys = world.data_dir().join("secret.key");
        let kept = fs::read(&keys).unwrap();
        fs::remove_file(&keys).unwrap();
        let refused = world.try_start().await.err().unwrap();
        assert!(format!("{refused:#}").contains("secret.key"), "{refused:#}");
        assert_eq!(world.only_vm(), vm);
        fs::write(&keys, kept).unwrap();
        let server = world.start().await;
        assert_eq!(server.run(&id, PROVE).await, PROOF);
        server.end().await;
    })
    .await;
}
