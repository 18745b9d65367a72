//! How accounts fare: pace, pauses, probes, and claims that heed them.

use callvault::catalog::{EventFilter, Lease, SlowDown, Turn, Urgency};
use callvault::domain::recording::{ErrorCode, State};
use callvault::domain::retry::Pace;

use futures::future::join_all;

use super::support::eventually;
use super::*;

const STEP: Duration = Duration::from_millis(1);

fn too_many(quiet_for: Duration) -> SlowDown {
    SlowDown { too_many: true, quiet_for, began_ago: Duration::ZERO }
}

on_every_catalog! {
    async fn no_more_is_claimed_than_the_pace_allows_over_all_nodes(database: Database) {
        let nodes = [database.node().await, database.node().await];
        accept(&nodes[0], 1..=20).await;
        assert_eq!(claim_some(&nodes[0], LONG, 8).await.len(), 8);
        let slowed = nodes[1].slow_down(account(), too_many(Duration::ZERO)).await.unwrap();
        assert_eq!(slowed, Some(Pace { limit: Some(4), too_many: Some(8) }));
        // Eight are under way: none more on either node until fewer than four are.
        for node in &nodes {
            assert!(node.standings(&accounts()).await.unwrap()[0].is_full);
            assert_eq!(claim_some(node, LONG, 8).await, []);
        }
    }

    async fn a_limit_of_one_lets_one_through_at_a_time(database: Database) {
        let nodes = [database.node().await, database.node().await, database.node().await];
        accept(&nodes[0], 1..=6).await;
        assert_eq!(nodes[0].slow_down(account(), too_many(Duration::ZERO)).await.unwrap().unwrap().limit, Some(1));
        for _ in 0..6 {
            let claims = join_all(nodes.iter().map(|node| claim_some(node, LONG, 5))).await;
            let mut claims: Vec<Claim> = claims.into_iter().flatten().collect();
            if claims.is_empty() {
                // Each found another one at the account's row.
                claims = claim_some(&nodes[0], LONG, 5).await;
            }
            assert_eq!(claims.len(), 1);
            assert!(claims[0].is_limited);
            let id = claims[0].lease.id;
            let _ = nodes[1].store(&claims[0].lease, &object(&id, b"audio"), true).await.unwrap();
        }
    }

    async fn a_lease_that_ran_out_takes_no_place(database: Database) {
        let catalog = database.node().await;
        accept(&catalog, [1]).await;
        claim_one(&catalog, Duration::from_millis(200)).await;
        catalog.slow_down(account(), too_many(Duration::ZERO)).await.unwrap();
        eventually("the one that is left behind is claimed", async || claim_some(&catalog, LONG, 1).await.pop()).await;
    }

    async fn a_burst_of_refusals_counts_once_and_the_pace_rises_again(database: Database) {
        let catalog = database.node().await;
        accept(&catalog, 1..=8).await;
        claim_some(&catalog, LONG, 8).await;
        let burst = SlowDown { began_ago: Duration::from_secs(60), ..too_many(Duration::ZERO) };
        assert_eq!(catalog.slow_down(account(), burst).await.unwrap().unwrap().limit, Some(4));
        assert_eq!(catalog.slow_down(account(), burst).await.unwrap(), None);
        // As a node of before that column leaves it.
        database.execute("UPDATE accounts SET slowed_at = NULL").await;
        assert_eq!(catalog.slow_down(account(), burst).await.unwrap(), None);
        catalog.speed_up(account(), LONG).await.unwrap();
        let later = eventually("it is not part of the burst", async || {
            catalog.slow_down(account(), too_many(Duration::ZERO)).await.unwrap()
        });
        assert_eq!(later.await, Pace { limit: Some(2), too_many: Some(4) });
        eventually("nothing limits the account any more", async || {
            catalog.speed_up(account(), STEP).await.unwrap();
            (!catalog.standings(&accounts()).await.unwrap()[0].is_full).then_some(())
        })
        .await;
    }

    async fn what_began_since_the_pace_fell_counts_though_it_was_raised_again(database: Database) {
        let catalog = database.node().await;
        accept(&catalog, 1..=8).await;
        claim_some(&catalog, LONG, 8).await;
        catalog.slow_down(account(), too_many(Duration::ZERO)).await.unwrap();
        let began = std::time::Instant::now();
        eventually("there is room again", async || {
            catalog.speed_up(account(), STEP).await.unwrap();
            (!catalog.standings(&accounts()).await.unwrap()[0].is_full).then_some(())
        })
        .await;
        let refused = SlowDown { began_ago: began.elapsed(), ..too_many(Duration::ZERO) };
        assert!(catalog.slow_down(account(), refused).await.unwrap().is_some());
    }

    async fn no_pace_rises_while_twilio_wants_to_be_left_alone(database: Database) {
        let catalog = database.node().await;
        accept(&catalog, 1..=8).await;
        claim_some(&catalog, LONG, 8).await;
        assert_eq!(catalog.slow_down(account(), too_many(LONG)).await.unwrap().unwrap().limit, Some(4));
        let other: AccountSid = format!("AC{}", "9".repeat(32)).parse().unwrap();
        assert_eq!(catalog.slow_down(other, too_many(Duration::ZERO)).await.unwrap().unwrap().limit, Some(1));
        let take = async |waiting| catalog.take_turn(other, Urgency::Urgent, waiting, LONG, LONG).await.unwrap();
        assert!(matches!(take(None).await, Turn::Granted(_)));
        let Turn::Waiting(second) = take(None).await else { panic!("there was no place") };
        eventually("another account's rises", async || {
            catalog.speed_up(account(), STEP).await.unwrap();
            catalog.speed_up(other, STEP).await.unwrap();
            (take(Some(second)).await == Turn::Granted(second)).then_some(())
        })
        .await;
        let slowed = catalog.slow_down(account(), too_many(Duration::ZERO)).await.unwrap();
        assert_eq!(slowed, Some(Pace { limit: Some(2), too_many: Some(4) }));
    }

    async fn an_account_is_left_alone_for_as_long_as_twilio_asks(database: Database) {
        let catalog = database.node().await;
        accept(&catalog, [1]).await;
        catalog.slow_down(account(), too_many(LONG)).await.unwrap();
        assert!(next_due(&catalog, &accounts()).await.unwrap() > LONG / 2);
        assert_eq!(claim_some(&catalog, LONG, 1).await, []);
        // A shorter one does not cut it short.
        catalog.slow_down(account(), too_many(STEP)).await.unwrap();
        assert!(next_due(&catalog, &accounts()).await.unwrap() > LONG / 2);
    }

    async fn a_paused_account_is_probed_by_one_node_and_resumes(database: Database) {
        let nodes = [database.node().await, database.node().await];
        let catalog = &nodes[0];
        accept(catalog, [1, 2]).await;
        let lease = claim_some(catalog, LONG, 1).await.remove(0).lease;
        let _ = catalog.fail(&lease, ErrorCode::Unauthorized, "401", again(LONG, Duration::ZERO)).await.unwrap();
        let paused = join_all(nodes.iter().map(|node| node.pause(account(), "401", Duration::ZERO))).await;
        assert_eq!(paused.into_iter().filter(|news| *news.as_ref().unwrap()).count(), 1);
        assert_eq!(catalog.standings(&accounts()).await.unwrap(), []);
        assert_eq!(claim_some(catalog, LONG, 2).await, []);

        assert!(catalog.paused(&accounts()).await.unwrap()[0].probe_is_due);
        let taken = join_all(nodes.iter().map(|node| node.take_probe(account(), LONG))).await;
        assert_eq!(taken.into_iter().filter(|taken| *taken.as_ref().unwrap()).count(), 1);
        let known = catalog.paused(&accounts()).await.unwrap()[0];
        assert_eq!((known.probes, known.probe_is_due), (1, false));

        assert!(nodes[1].resume(account()).await.unwrap());
        assert!(!nodes[0].resume(account()).await.unwrap());
        assert_eq!(catalog.paused(&accounts()).await.unwrap(), []);
        // The one that was refused is due at once, too.
        assert_eq!(claim_some(catalog, LONG, 2).await.len(), 2);
        let events = eventually("the feed tells", async || {
            let kinds = vec!["account.paused".to_owned(), "account.resumed".to_owned()];
            let (events, _) = catalog.events(None, &EventFilter { kinds, ..EventFilter::default() }, 10).await.unwrap();
            (events.len() == 2).then_some(events)
        })
        .await;
        assert!(events.iter().all(|event| event.recording.is_none() && event.account == account()));
    }

    async fn what_someone_waits_for_goes_before_the_backlog(database: Database) {
        let catalog = database.node().await;
        accept(&catalog, 1..=30).await;
        catalog.hurry(&recording_id(27), Duration::from_secs(2)).await.unwrap();
        let first = claim_some(&catalog, LONG, 1).await.remove(0);
        assert_eq!(first.lease.id, recording_id(27));
        assert_eq!(first.recording.state, State::Fetching);
    }

    async fn a_request_that_is_no_fetch_takes_a_place_where_the_pace_is_limited(database: Database) {
        let nodes = [database.node().await, database.node().await];
        accept(&nodes[0], 1..=4).await;
        let take = async |node: usize, waiting| {
            nodes[node].take_turn(account(), Urgency::Urgent, waiting, LONG, LONG).await.unwrap()
        };
        assert_eq!(take(0, None).await, Turn::Free);
        assert_eq!(nodes[0].slow_down(account(), too_many(Duration::ZERO)).await.unwrap().unwrap().limit, Some(1));
        let claim = claim_some(&nodes[0], LONG, 1).await.remove(0);
        // The fetch has the only place; whoever waits gets it next, before the backlog.
        let Turn::Waiting(first) = take(1, None).await else { panic!("there was no place") };
        let _ = nodes[0].store(&claim.lease, &object(&claim.lease.id, b"audio"), true).await.unwrap();
        assert_eq!(claim_some(&nodes[0], LONG, 1).await, []);
        assert_eq!(take(1, Some(first)).await, Turn::Granted(first));
        let Turn::Waiting(second) = take(0, None).await else { panic!("there was no place") };
        nodes[1].give_back_turn(first, Duration::ZERO).await.unwrap();
        assert_eq!(take(0, Some(second)).await, Turn::Granted(second));
        assert_eq!(claim_some(&nodes[1], LONG, 1).await, []);
        nodes[0].give_back_turn(second, Duration::ZERO).await.unwrap();
        assert_eq!(claim_some(&nodes[1], LONG, 2).await.len(), 1);
    }

    async fn requests_that_never_cease_let_one_fetch_through_at_a_time(database: Database) {
        let nodes = [database.node().await, database.node().await];
        accept(&nodes[0], 1..=6).await;
        assert_eq!(nodes[0].slow_down(account(), too_many(Duration::ZERO)).await.unwrap().unwrap().limit, Some(1));
        let take = async |waiting| nodes[0].take_turn(account(), Urgency::Urgent, waiting, LONG, LONG).await.unwrap();
        let store = async |claim: Claim| {
            let _ = nodes[1].store(&claim.lease, &object(&claim.lease.id, b"audio"), true).await.unwrap();
        };
        let Turn::Granted(mut having) = take(None).await else { panic!("nothing is under way") };
        let Turn::Waiting(mut next) = take(None).await else { panic!("there was no place") };
        for _ in 0..2 {
            // It is given back, and kept for a fetch, though someone waits.
            nodes[0].give_back_turn(having, LONG).await.unwrap();
            assert_eq!(take(Some(next)).await, Turn::Waiting(next));
            assert!(!nodes[1].standings(&accounts()).await.unwrap()[0].is_full);
            store(claim_some(&nodes[1], LONG, 5).await.remove(0)).await;
            // Then it is their turn again.
            assert!(nodes[1].standings(&accounts()).await.unwrap()[0].is_full);
            assert_eq!(claim_some(&nodes[1], LONG, 5).await, []);
            assert_eq!(take(Some(next)).await, Turn::Granted(next));
            having = next;
            let Turn::Waiting(waits) = take(None).await else { panic!("there was no place") };
            next = waits;
        }

        eventually("two at once", async || {
            nodes[0].speed_up(account(), STEP).await.unwrap();
            (take(Some(next)).await == Turn::Granted(next)).then_some(())
        })
        .await;
        let Turn::Waiting(third) = take(None).await else { panic!("there was no place") };
        nodes[0].give_back_turn(having, LONG).await.unwrap();
        assert_eq!(take(Some(third)).await, Turn::Waiting(third));
        let fetched = claim_some(&nodes[1], LONG, 5).await.remove(0);
        // One is being fetched: the rest is for those who wait, again and again.
        nodes[0].give_back_turn(next, LONG).await.unwrap();
        assert_eq!(claim_some(&nodes[1], LONG, 5).await, []);
        assert_eq!(take(Some(third)).await, Turn::Granted(third));
        store(fetched).await;
    }

    async fn no_place_is_kept_where_no_fetch_is_due(database: Database) {
        let catalog = database.node().await;
        catalog.slow_down(account(), too_many(Duration::ZERO)).await.unwrap();
        let take = async |waiting| catalog.take_turn(account(), Urgency::Urgent, waiting, LONG, LONG).await.unwrap();
        let Turn::Granted(first) = take(None).await else { panic!("nothing is under way") };
        let Turn::Waiting(second) = take(None).await else { panic!("there was no place") };
        catalog.give_back_turn(first, LONG).await.unwrap();
        assert_eq!(take(Some(second)).await, Turn::Granted(second));
    }

    async fn a_server_that_fails_slows_down_as_one_that_has_too_much_does(database: Database) {
        let catalog = database.node().await;
        accept(&catalog, 1..=9).await;
        claim_some(&catalog, LONG, 8).await;
        let failing = SlowDown { too_many: false, ..too_many(Duration::ZERO) };
        let slowed = catalog.slow_down(account(), failing).await.unwrap();
        assert_eq!(slowed, Some(Pace { limit: Some(4), too_many: None }), "where it is too many is not known");
        assert_eq!(claim_some(&catalog, LONG, 8).await, []);
        eventually("it rises again", async || {
            catalog.speed_up(account(), STEP).await.unwrap();
            claim_some(&catalog, LONG, 1).await.pop()
        })
        .await;
    }

    async fn what_nobody_waits_for_keeps_no_fetch_from_being_begun(database: Database) {
        let catalog = database.node().await;
        accept(&catalog, 1..=4).await;
        assert_eq!(claim_some(&catalog, LONG, 2).await.len(), 2);
        assert_eq!(catalog.slow_down(account(), too_many(Duration::ZERO)).await.unwrap().unwrap().limit, Some(1));
        let wait = async |urgency| catalog.take_turn(account(), urgency, None, LONG, LONG).await.unwrap();
        for _ in 0..3 {
            assert!(matches!(wait(Urgency::Idle).await, Turn::Waiting(_)));
        }
        assert!(catalog.standings(&accounts()).await.unwrap()[0].is_full);
        for id in [recording_id(1), recording_id(2)] {
            let lease = Lease { id, epoch: 1 };
            let _ = catalog.store(&lease, &object(&id, b"audio"), true).await.unwrap();
        }
        assert!(!catalog.standings(&accounts()).await.unwrap()[0].is_full);
        assert_eq!(claim_some(&catalog, LONG, 2).await.len(), 1);
    }

    async fn a_turn_that_nobody_gives_back_runs_out(database: Database) {
        let catalog = database.node().await;
        accept(&catalog, [1]).await;
        catalog.slow_down(account(), too_many(Duration::ZERO)).await.unwrap();
        let short = Duration::from_millis(200);
        assert!(matches!(catalog.take_turn(account(), Urgency::Urgent, None, short, LONG).await.unwrap(), Turn::Granted(_)));
        eventually("its place is free again", async || claim_some(&catalog, LONG, 1).await.pop()).await;
    }

    async fn one_account_leaves_another_as_it_is(database: Database) {
        let catalog = database.node().await;
        accept(&catalog, [1]).await;
        let other: AccountSid = format!("AC{}", "9".repeat(32)).parse().unwrap();
        catalog.pause(other, "401", LONG).await.unwrap();
        catalog.slow_down(other, too_many(LONG)).await.unwrap();
        assert_eq!(catalog.paused(&accounts()).await.unwrap(), []);
        assert_eq!(claim_some(&catalog, LONG, 5).await.len(), 1);
    }
}
