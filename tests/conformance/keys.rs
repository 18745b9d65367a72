//! Keys and the secrets of shares: what each node comes to know of them.

use callvault::catalog::{KeyRingRows, NewKey, Rotation};
use callvault::domain::key::{Holder, KeyId, Scope};
use futures::future::join_all;

use super::*;

fn new_key(random: u8) -> NewKey {
    let hash = Digest::of(&[random]);
    let holder = Holder {
        id: KeyId::of_random(&hash),
        scopes: vec![Scope::Read, Scope::Ingest],
        accounts: Some(vec![account()]),
        rate_per_second: 7.try_into().ok(),
    };
    NewKey { holder, hash, name: Some("of the tests".to_owned()) }
}

async fn ring(catalog: &Arc<dyn Catalog>) -> KeyRingRows {
    catalog.key_ring(None, || [9; 32]).await.unwrap().expect("all of it")
}

/// What is another than at that revision.
async fn news(catalog: &Arc<dyn Catalog>, revision: i64) -> Option<KeyRingRows> {
    catalog.key_ring(Some(revision), || [9; 32]).await.unwrap()
}

on_every_catalog! {
    async fn every_change_is_news_to_every_node_and_nothing_else_is(database: Database) {
        let nodes = [database.node().await, database.node().await];
        let before = ring(&nodes[0]).await;
        assert_eq!((before.keys.len(), before.secrets.len()), (0, 1));
        assert!(news(&nodes[1], before.revision).await.is_none());

        let made = nodes[0].create_key(&new_key(1)).await.unwrap().expect("there is room");
        let with_key = news(&nodes[1], before.revision).await.expect("a key");
        assert_eq!(with_key.keys, std::slice::from_ref(&made));
        assert_eq!((&made.holder, made.hash), (&new_key(1).holder, new_key(1).hash));
        accept(&nodes[0], [1]).await;
        assert!(news(&nodes[1], with_key.revision).await.is_none(), "recordings are no keys");

        let revoked = nodes[1].revoke_key(made.holder.id).await.unwrap().expect("a key");
        assert!(revoked.revoked_at.is_some());
        let without = news(&nodes[0], with_key.revision).await.expect("a key less");
        assert_eq!(without.keys, []);
        assert_eq!(nodes[0].keys().await.unwrap(), std::slice::from_ref(&revoked), "it is shown all the same");

        assert_eq!(nodes[0].revoke_key(made.holder.id).await.unwrap(), Some(revoked), "when it was revoked stays");
        assert_eq!(nodes[0].revoke_key(new_key(2).holder.id).await.unwrap(), None);
        assert!(news(&nodes[0], without.revision).await.is_none(), "nothing was changed");
    }

    async fn all_nodes_find_the_same_first_secret(database: Database) {
        let nodes = [database.node().await, database.node().await, database.node().await];
        let rings = join_all(nodes.iter().zip(1_u8..).map(|(node, number)| async move {
            node.key_ring(None, || [number; 32]).await.unwrap().expect("all of it")
        }))
        .await;
        assert_eq!(rings[0].secrets.len(), 1);
        assert!(rings.iter().all(|ring| ring.secrets == rings[0].secrets));
    }

    async fn a_new_secret_signs_and_earlier_ones_are_kept(database: Database) {
        let catalog = database.node().await;
        let keep = Rotation::LetThemEnd;
        let ids = |ring: &KeyRingRows| ring.secrets.iter().map(|secret| (secret.id, secret.is_over)).collect::<Vec<_>>();
        assert_eq!(ids(&ring(&catalog).await), [(1, false)]);
        assert_eq!(catalog.rotate_share_secret([2; 32], keep).await.unwrap(), 2);
        let two = ring(&catalog).await;
        assert_eq!(ids(&two), [(1, false), (2, false)]);
        assert_eq!(two.secrets[1].secret, [2; 32]);
        assert_eq!(catalog.rotate_share_secret([3; 32], Rotation::EndThem).await.unwrap(), 3);
        assert_eq!(ids(&ring(&catalog).await), [(1, true), (2, true), (3, false)]);
    }

    async fn changes_at_once_are_all_seen(database: Database) {
        let nodes = [database.node().await, database.node().await, database.node().await];
        let before = ring(&nodes[0]).await.revision;
        let made = join_all((1..=12_u8).map(|random| {
            let node = &nodes[usize::from(random) % 3];
            async move { node.create_key(&new_key(random)).await }
        }));
        assert!(made.await.iter().all(|made| made.as_ref().is_ok_and(Option::is_some)));
        let after = news(&nodes[1], before).await.expect("keys");
        assert_eq!(after.keys.len(), 12);
    }
}
