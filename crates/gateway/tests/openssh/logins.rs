//! Who gets in: RSA keys and passwords, with plain OpenSSH, and what plain OpenSSH would not do.

use std::sync::{Arc, atomic::Ordering};

use russh::{
    client,
    keys::{HashAlg, PrivateKey, PrivateKeyWithHashAlg, PublicKeyOrCertificate},
};
use tokio::time::timeout;

use super::ground::{Ground, NAME, PASSWORD, WITHIN, done, err, out};

#[tokio::test]
async fn an_rsa_key_opens_with_sha_2() {
    let ground = Ground::open().await;
    let rsa = format!("IdentityFile={}", ground.path("rsa"));
    for algorithm in ["rsa-sha2-256", "rsa-sha2-512"] {
        let algorithm = format!("PubkeyAcceptedAlgorithms={algorithm}");
        let output = done(ground.ssh(&["-o", &rsa, "-o", &algorithm, "gate", "echo in"])).await;
        assert_eq!(out(&output), "in\n", "{algorithm}: {}", err(&output));
    }
    ground.close().await;
}

/// Trusts any server.
pub struct Client;

impl client::Handler for Client {
    type Error = russh::Error;

    async fn check_server_key(&mut self, _: &PublicKeyOrCertificate) -> Result<bool, Self::Error> {
        Ok(true)
    }
}

/// A client other than OpenSSH, with the key in this file; an RSA key signs with this hash.
pub async fn logged_in(
    ground: &Ground,
    file: &str,
    hash: Option<HashAlg>,
) -> Option<client::Handle<Client>> {
    let text = std::fs::read_to_string(ground.path(file)).unwrap();
    let key = Arc::new(PrivateKey::from_openssh(text).unwrap());
    let config = Arc::new(client::Config::default());
    let mut session = client::connect(config, ("127.0.0.1", ground.port), Client).await.unwrap();
    let key = PrivateKeyWithHashAlg::new(key, hash);
    let answer = timeout(WITHIN, session.authenticate_publickey(NAME, key)).await.unwrap();
    answer.is_ok_and(|answer| answer.success()).then_some(session)
}

/// OpenSSH would not offer it to a server that does not name it.
#[tokio::test]
async fn the_same_key_with_sha_1_does_not_open_whatever_is_signed() {
    let ground = Ground::open().await;
    assert!(logged_in(&ground, "rsa", None).await.is_none());
    assert!(logged_in(&ground, "rsa", Some(HashAlg::Sha256)).await.is_some());
    ground.close().await;
}

#[tokio::test]
async fn the_door_of_a_workspace_takes_its_password() {
    let ground = Ground::open().await;
    let args = ["-J", "jump", "root@blue", "echo in; cat"];
    let output = done(ground.ssh_with_password(PASSWORD, &args)).await;
    assert_eq!(out(&output), "in\n", "{}", err(&output));
    let entered = ground.routes.entered.load(Ordering::Relaxed);
    for (password, to) in
        [("wrong horse", "root@blue"), (PASSWORD, "ada@blue"), (PASSWORD, "root@red")]
    {
        let output = done(ground.ssh_with_password(password, &["-J", "jump", to, "true"])).await;
        let said = err(&output);
        assert!(said.contains("Permission denied (publickey,password)"), "{to}: {said}");
    }
    // At the gateway's own door a name says nothing of whose workspace it is.
    let output = done(ground.ssh_with_password(PASSWORD, &["gate", "true"])).await;
    assert!(err(&output).contains("Permission denied (publickey)"), "{}", err(&output));
    assert_eq!(ground.routes.entered.load(Ordering::Relaxed), entered);
    ground.close().await;
}
