//! Walks over Twilio's lists, and questions about announced recordings.

use std::collections::HashSet;
use std::time::Instant;

use callvault::catalog::{Announced, Settled, SlowDown, Walk, Walker};
use callvault::domain::recording::{ErrorCode, State};
use futures::future::join_all;

use super::support::eventually;
use super::*;

/// Long enough to be saved in, short enough to be waited for.
const SHORT: Duration = Duration::from_millis(300);
const ZERO: Duration = Duration::ZERO;

fn some_accounts(count: usize) -> Vec<AccountSid> {
    (0..count).map(|number| format!("AC{number:032x}").parse().unwrap()).collect()
}

fn walker(accounts: &[AccountSid], lease: Duration) -> Walker {
    Walker { node: "node".to_owned(), accounts: accounts.to_vec(), lease, window: LONG, reach: LONG }
}

async fn walk_when_due(catalog: &Arc<dyn Catalog>, lease: Duration) -> Walk {
    let walker = walker(&accounts(), lease);
    eventually("a walk is granted", async || catalog.grant_walk(&walker).await.unwrap()).await
}

async fn announced_when_due(catalog: &Arc<dyn Catalog>, every: Duration) -> Announced {
    eventually("a question is due", async || catalog.claim_announced(&accounts(), every).await.unwrap()).await
}

fn is_done(settled: callvault::catalog::Settled) -> bool {
    settled == Settled::Done
}

on_every_catalog! {
    async fn each_account_is_walked_by_one_node_at_a_time(database: Database) {
        let nodes = join_all((0..4).map(|_| database.node())).await;
        let accounts = some_accounts(20);
        for node in &nodes {
            node.enroll(&accounts).await.unwrap();
        }
        let walking = (0..8).map(|at| {
            let (node, walker) = (nodes[at % nodes.len()].clone(), walker(&accounts, LONG));
            tokio::spawn(async move {
                let mut mine = Vec::new();
                while node.ahead(&walker.accounts, LONG).await.unwrap().unwrap().walk_in == Some(ZERO) {
                    mine.extend(node.grant_walk(&walker).await.unwrap());
                }
                mine
            })
        });
        let walks: Vec<Walk> = join_all(walking).await.into_iter().flat_map(|mine| mine.unwrap()).collect();
        let walked: HashSet<AccountSid> = walks.iter().map(|walk| walk.lease.account).collect();
        assert_eq!((walks.len(), walked.len()), (20, 20));
        assert!(walks.iter().all(|walk| walk.lease.epoch == 1 && walk.next_page.is_none()));
        // Nobody walks for accounts that it has no credentials for.
        assert_eq!(nodes[0].grant_walk(&walker(&[account()], LONG)).await.unwrap(), None);
    }

    async fn a_walk_goes_on_where_it_was_saved_once_its_lease_ran_out(database: Database) {
        let (first, second) = (database.node().await, database.node().await);
        first.enroll(&accounts()).await.unwrap();
        let begun = walk_when_due(&first, SHORT).await;
        assert_eq!(begun.begun_at.duration_since(begun.from).as_secs(), 3600);
        assert!(is_done(first.save_page(&begun.lease, "PageToken=2", 7, SHORT).await.unwrap()));
        let resumed = walk_when_due(&second, LONG).await;
        assert_eq!((resumed.lease.epoch, resumed.next_page.as_deref(), resumed.pages), (2, Some("PageToken=2"), 1));
        assert_eq!((resumed.begun_at, resumed.from), (begun.begun_at, begun.from));

        // Whoever lost the lease changes nothing more.
        let stale = begun.lease;
        for settled in [
            first.save_page(&stale, "PageToken=9", 1, LONG).await,
            first.renew_walk(&stale, LONG).await,
            first.finish_walk(&stale, 1, LONG).await,
            first.abandon_walk(&stale, 1, LONG).await,
            first.fail_walk(&stale, ZERO, ZERO, true).await,
            first.hand_back_walk(&stale).await,
        ] {
            assert_eq!(settled.unwrap(), Settled::Stale);
        }
        assert!(is_done(second.hand_back_walk(&resumed.lease).await.unwrap()));
        assert_eq!(second.renew_walk(&resumed.lease, LONG).await.unwrap(), Settled::Stale, "it was given back");
        let handed_on = walk_when_due(&first, LONG).await;
        assert_eq!((handed_on.lease.epoch, handed_on.next_page.as_deref()), (3, Some("PageToken=2")));
    }

    async fn a_renewed_walk_lasts(database: Database) {
        let catalog = database.node().await;
        catalog.enroll(&accounts()).await.unwrap();
        let walk = walk_when_due(&catalog, SHORT).await;
        assert!(is_done(catalog.renew_walk(&walk.lease, LONG).await.unwrap()));
        assert!(catalog.ahead(&accounts(), LONG).await.unwrap().unwrap().walk_in > Some(LONG / 2));
    }

    async fn the_next_walk_comes_when_it_is_due_and_looks_afresh(database: Database) {
        let catalog = database.node().await;
        catalog.enroll(&accounts()).await.unwrap();
        let first = walk_when_due(&catalog, LONG).await;
        assert!(is_done(catalog.save_page(&first.lease, "PageToken=2", 1, LONG).await.unwrap()));
        assert!(is_done(catalog.finish_walk(&first.lease, 1, LONG).await.unwrap()));
        let ahead = catalog.ahead(&accounts(), LONG).await.unwrap().unwrap();
        assert!(ahead.walk_in > Some(LONG / 2) && ahead.walk_in <= Some(LONG), "{ahead:?}");
        assert_eq!(catalog.grant_walk(&walker(&accounts(), LONG)).await.unwrap(), None);
        // The one that is due again at once begins anew.
        catalog.walk_all_now(&accounts()).await.unwrap();
        let second = walk_when_due(&catalog, LONG).await;
        assert_eq!((second.next_page, second.pages), (None, 0));
        assert!(second.begun_at >= first.begun_at);
        assert!(is_done(catalog.finish_walk(&second.lease, 0, Duration::from_millis(1)).await.unwrap()));
        walk_when_due(&catalog, LONG).await;
    }

    async fn a_walk_that_is_wanted_follows_the_one_under_way(database: Database) {
        let catalog = database.node().await;
        catalog.enroll(&accounts()).await.unwrap();
        let under_way = walk_when_due(&catalog, LONG).await;
        catalog.walk_all_now(&accounts()).await.unwrap();
        assert_eq!(catalog.grant_walk(&walker(&accounts(), LONG)).await.unwrap(), None, "one node at a time");
        assert!(is_done(catalog.finish_walk(&under_way.lease, 0, LONG).await.unwrap()));
        let wanted = walk_when_due(&catalog, LONG).await;
        assert!(is_done(catalog.finish_walk(&wanted.lease, 0, LONG).await.unwrap()));
        assert_eq!(catalog.grant_walk(&walker(&accounts(), LONG)).await.unwrap(), None, "wanted once, walked once");
    }

    async fn one_accounts_trouble_delays_no_other(database: Database) {
        let catalog = database.node().await;
        let accounts = some_accounts(3);
        catalog.enroll(&accounts).await.unwrap();
        let walker = walker(&accounts, LONG);
        let refused = catalog.grant_walk(&walker).await.unwrap().unwrap();
        assert!(is_done(catalog.save_page(&refused.lease, "PageToken=2", 0, LONG).await.unwrap()));
        assert!(is_done(catalog.fail_walk(&refused.lease, LONG, LONG / 2, false).await.unwrap()));
        let slow = catalog.grant_walk(&walker).await.unwrap().unwrap();
        let well = catalog.grant_walk(&walker).await.unwrap().unwrap();
        let walked: HashSet<AccountSid> = [refused.lease, slow.lease, well.lease].map(|lease| lease.account).into();
        assert_eq!(walked.len(), 3);
        assert!(is_done(catalog.finish_walk(&well.lease, 0, ZERO).await.unwrap()));
        let again = catalog.grant_walk(&walker).await.unwrap().unwrap();
        assert_eq!(again.lease.account, well.lease.account);

        // A Retry-After holds, whoever wants the walk; and the walk is remembered.
        catalog.walk_all_now(&accounts).await.unwrap();
        let wait = catalog.ahead(&[refused.lease.account], LONG).await.unwrap().unwrap().walk_in.unwrap();
        assert!(wait > LONG / 4 && wait <= LONG / 2, "{wait:?}");
    }

    async fn what_is_paused_or_quiet_is_not_asked_of(database: Database) {
        let catalog = database.node().await;
        let accounts = [account(), some_accounts(1)[0]];
        catalog.enroll(&accounts).await.unwrap();
        catalog.accept(&callback(1, "in-progress")).await.unwrap();
        assert!(catalog.pause(account(), "401", LONG).await.unwrap());
        let quiet = SlowDown { too_many: true, quiet_for: LONG, began_ago: ZERO };
        catalog.slow_down(accounts[1], quiet).await.unwrap();
        assert_eq!(catalog.grant_walk(&walker(&accounts, LONG)).await.unwrap(), None);
        assert_eq!(catalog.claim_announced(&accounts, ZERO).await.unwrap(), None);
        let ahead = catalog.ahead(&accounts, ZERO).await.unwrap().unwrap();
        assert_eq!((ahead.walk_in, ahead.announced_in), (None, None));
        assert!(catalog.resume(account()).await.unwrap());
        let walk = catalog.grant_walk(&walker(&accounts, LONG)).await.unwrap().unwrap();
        assert_eq!(walk.lease.account, account());
        assert!(catalog.claim_announced(&accounts, ZERO).await.unwrap().is_some());
    }

    async fn a_walk_that_failed_goes_on_from_its_page_or_from_the_start(database: Database) {
        let catalog = database.node().await;
        catalog.enroll(&accounts()).await.unwrap();
        let first = walk_when_due(&catalog, LONG).await;
        assert!(is_done(catalog.save_page(&first.lease, "PageToken=2", 0, LONG).await.unwrap()));
        assert!(is_done(catalog.fail_walk(&first.lease, ZERO, ZERO, false).await.unwrap()));
        let second = walk_when_due(&catalog, LONG).await;
        assert_eq!((second.next_page.as_deref(), second.failed_rounds), (Some("PageToken=2"), 1));
        assert!(is_done(catalog.fail_walk(&second.lease, ZERO, ZERO, true).await.unwrap()));
        let third = walk_when_due(&catalog, LONG).await;
        assert_eq!((third.next_page, third.failed_rounds, third.begun_at), (None, 2, first.begun_at));
    }

    async fn the_lag_counts_from_the_beginning_of_the_last_complete_walk(database: Database) {
        let catalog = database.node().await;
        let accounts = some_accounts(2);
        assert_eq!(catalog.ahead(&accounts, LONG).await.unwrap(), None);
        catalog.enroll(&accounts[..1]).await.unwrap();
        assert_eq!(catalog.ahead(&accounts, LONG).await.unwrap(), None, "one of them is not known");
        catalog.enroll(&accounts).await.unwrap();
        let lag_of = async |accounts: &[AccountSid]| catalog.ahead(accounts, LONG).await.unwrap().unwrap().lag;
        eventually("time passes", async || (lag_of(&accounts[1..]).await > SHORT).then_some(())).await;
        let of_the_younger = lag_of(&accounts[1..]).await;
        let begun = Instant::now();
        for _ in &accounts {
            let walk = catalog.grant_walk(&walker(&accounts, LONG)).await.unwrap().unwrap();
            assert!(lag_of(&accounts).await >= of_the_younger, "one of them was not walked over yet");
            assert!(is_done(catalog.finish_walk(&walk.lease, 0, LONG).await.unwrap()));
        }
        let (lag, since) = (lag_of(&accounts).await, begun.elapsed());
        assert!(lag < since + SHORT, "{lag:?} is more than the {since:?} since the first of both walks began");
        // Enrolling again, as every node does at its start, changes nothing.
        catalog.enroll(&accounts).await.unwrap();
        let first = catalog.ahead(&accounts[..1], LONG).await.unwrap().unwrap();
        assert!(first.walk_in > Some(LONG / 2), "{first:?}");
    }

    async fn a_walk_looks_back_to_where_the_last_complete_one_began(database: Database) {
        let catalog = database.node().await;
        let accounts = some_accounts(2);
        catalog.enroll(&accounts).await.unwrap();
        let walk = async |account: usize, reach: Duration| {
            let walker = Walker { window: SHORT, reach, ..walker(&accounts[account..=account], LONG) };
            catalog.grant_walk(&walker).await.unwrap().unwrap()
        };
        let first = walk(0, LONG).await;
        assert!(is_done(catalog.finish_walk(&first.lease, 0, ZERO).await.unwrap()));
        eventually("more than the window has passed", async || {
            (catalog.ahead(&accounts[..1], LONG).await.unwrap().unwrap().lag > 4 * SHORT).then_some(())
        })
        .await;
        for _ in 0..2 {
            let wide = walk(0, LONG).await;
            assert!(wide.from <= first.begun_at, "{wide:?}");
            // One that does not come to the list's end leaves the gap as it is.
            assert!(is_done(catalog.abandon_walk(&wide.lease, 0, ZERO).await.unwrap()));
        }
        let bounded = walk(0, 2 * SHORT).await;
        assert!(bounded.from > first.begun_at, "{bounded:?}");
        assert!(walk(1, LONG).await.from <= first.begun_at, "of this account no walk was complete yet");
    }

    async fn the_known_ones_of_a_page_are_looked_up_at_once(database: Database) {
        let catalog = database.node().await;
        accept(&catalog, 1..=600).await;
        catalog.accept(&callback(601, "in-progress")).await.unwrap();
        let page = (1..=1000).map(|number| recording_id(number).recording);
        let known = catalog.states_of(account(), page).await.unwrap();
        assert_eq!(known.len(), 601);
        assert_eq!(known[&recording_id(1).recording], State::Pending);
        assert_eq!(known[&recording_id(601).recording], State::Announced);
        assert!(catalog.states_of(some_accounts(1)[0], [recording_id(1).recording]).await.unwrap().is_empty());
    }

    async fn an_announced_recording_is_asked_about_when_nothing_was_heard_of_it(database: Database) {
        let nodes = join_all((0..4).map(|_| database.node())).await;
        nodes[0].enroll(&accounts()).await.unwrap();
        assert_eq!(nodes[0].ahead(&accounts(), ZERO).await.unwrap().unwrap().announced_in, None);
        accept(&nodes[0], [1]).await;
        for number in 2..=3 {
            nodes[0].accept(&callback(number, "in-progress")).await.unwrap();
        }
        assert_eq!(nodes[0].claim_announced(&accounts(), LONG).await.unwrap(), None);
        let announced_in = nodes[0].ahead(&accounts(), LONG).await.unwrap().unwrap().announced_in.unwrap();
        assert!(announced_in > LONG / 2 && announced_in <= LONG, "{announced_in:?}");

        // Of many nodes one asks, and of an account about one at a time.
        let claims = nodes.iter().cycle().take(16).map(|node| {
            let node = node.clone();
            tokio::spawn(async move { node.claim_announced(&accounts(), ZERO).await.unwrap() })
        });
        let claimed: Vec<Announced> = join_all(claims).await.into_iter().filter_map(|claim| claim.unwrap()).collect();
        assert_eq!(claimed.len(), 1, "{claimed:?}");
        assert!(nodes[0].ahead(&accounts(), ZERO).await.unwrap().unwrap().announced_in > Some(ZERO));
        nodes[1].asked_about(account(), ZERO).await.unwrap();
        let second = announced_when_due(&nodes[2], ZERO).await;
        assert_ne!(second.recording.id, claimed[0].recording.id, "the one that waited longer comes first");
        // Twilio wants to be left alone.
        nodes[2].asked_about(account(), LONG).await.unwrap();
        assert_eq!(nodes[0].claim_announced(&accounts(), ZERO).await.unwrap(), None);
        assert!(nodes[0].ahead(&accounts(), ZERO).await.unwrap().unwrap().announced_in.unwrap() > LONG / 2);
    }

    async fn each_question_has_its_own_time(database: Database) {
        let catalog = database.node().await;
        catalog.enroll(&accounts()).await.unwrap();
        for number in 1..=2 {
            catalog.accept(&callback(number, "in-progress")).await.unwrap();
        }
        let first = announced_when_due(&catalog, SHORT).await;
        catalog.asked_about(account(), ZERO).await.unwrap();
        let second = announced_when_due(&catalog, SHORT).await;
        catalog.asked_about(account(), ZERO).await.unwrap();
        assert_ne!(first.recording.id, second.recording.id);
        assert!(first.known_for >= SHORT && first.known_for < LONG / 2, "{first:?}");
        let third = announced_when_due(&catalog, SHORT).await;
        assert_eq!(third.recording.id, first.recording.id);
        // What has moved on is not asked about again.
        catalog.asked_about(account(), ZERO).await.unwrap();
        catalog.accept(&callback(1, "completed")).await.unwrap();
        catalog.accept(&callback(2, "absent")).await.unwrap();
        assert_eq!(catalog.ahead(&accounts(), ZERO).await.unwrap().unwrap().announced_in, None);
        assert_eq!(catalog.claim_announced(&accounts(), ZERO).await.unwrap(), None);
    }

    async fn an_announced_recording_is_given_up_once_and_a_late_callback_revives_it(database: Database) {
        let catalog = database.node().await;
        let id = catalog.accept(&callback(1, "in-progress")).await.unwrap().recording.id;
        for _ in 0..2 {
            catalog.give_up_announced(&id, ErrorCode::NotReady, "still in-progress").await.unwrap();
        }
        let given_up = catalog.recording(&id).await.unwrap().unwrap();
        let error = given_up.last_error.unwrap();
        assert_eq!((given_up.state, error.code, error.detail.as_str()), (State::Failed, ErrorCode::NotReady, "still in-progress"));
        let history = catalog.history(&id).await.unwrap();
        assert_eq!(history.iter().filter(|entry| entry.kind == "recording.failed").count(), 1);
        assert_eq!(catalog.accept(&callback(1, "completed")).await.unwrap().recording.state, State::Pending);
        // What is on its way is not given up.
        catalog.give_up_announced(&id, ErrorCode::NotReady, "late").await.unwrap();
        assert_eq!(catalog.recording(&id).await.unwrap().unwrap().state, State::Pending);
    }
}
