//! The right to ask Twilio for a call, and what is remembered of the answer.

use callvault::catalog::{Asked, FoundBy, Question, Settled};
use futures::future::join_all;

use super::support::eventually;
use super::*;

/// Short enough to be waited for.
const SHORT: Duration = Duration::from_millis(200);

async fn ask(catalog: &Arc<dyn Catalog>, call: u32, lease: Duration) -> Option<Question> {
    catalog.ask(account(), call_sid(call), lease, LONG).await.unwrap()
}

async fn granted(catalog: &Arc<dyn Catalog>, call: u32) -> Question {
    ask(catalog, call, LONG).await.expect("the right is granted")
}

async fn granted_in_the_end(catalog: &Arc<dyn Catalog>, call: u32) -> Question {
    eventually("the right is granted", async || ask(catalog, call, LONG).await).await
}

async fn standing(catalog: &Arc<dyn Catalog>, call: u32) -> Option<Asked> {
    let asked = catalog.questions(call_sid(call), &accounts()).await.unwrap();
    asked.first().map(|(_, asked)| *asked)
}

/// What Twilio's list says of a recording, under that call.
fn listed(number: u32, call: u32) -> Announcement {
    let by = FoundBy::Request;
    Announcement {
        details: Details { call_sid: Some(call_sid(call)), ..Details::default() },
        by: AnnouncedBy::Found { by, status: "completed".to_owned(), error_code: None },
        ..callback(number, "")
    }
}

async fn answer(catalog: &Arc<dyn Catalog>, call: u32) -> Option<RecordingId> {
    let views = catalog.call(call_sid(call), None).await.unwrap();
    views.first().and_then(|view| view.answer()).map(|answer| answer.id)
}

/// The rows of the table.
async fn remembered(database: &Database) -> i64 {
    const COUNT: &str = "SELECT count(*) FROM questions";
    match &database.url {
        Url::Sqlite(folder) => {
            let options = sqlx::sqlite::SqliteConnectOptions::new().filename(folder.path().join("catalog.db"));
            let connecting = <sqlx::SqliteConnection as sqlx::Connection>::connect_with(&options);
            sqlx::query_scalar(COUNT).fetch_one(&mut connecting.await.unwrap()).await.unwrap()
        }
        Url::Postgres(url) => {
            let connecting = <sqlx::PgConnection as sqlx::Connection>::connect(url);
            sqlx::query_scalar(COUNT).fetch_one(&mut connecting.await.unwrap()).await.unwrap()
        }
    }
}

on_every_catalog! {
    async fn of_many_that_want_to_ask_one_may(database: Database) {
        let nodes = join_all((0..4).map(|_| database.node())).await;
        let asking = (0..80).map(|at| {
            let node = nodes[at % nodes.len()].clone();
            tokio::spawn(async move { ask(&node, 1, LONG).await })
        });
        let asked: Vec<_> = join_all(asking).await.into_iter().filter_map(Result::unwrap).collect();
        assert_eq!(asked.len(), 1, "{asked:?}");
        for node in &nodes {
            assert_eq!(standing(node, 1).await, Some(Asked::Open));
        }
        // Another call, and the same call in another account, are other questions.
        assert!(ask(&nodes[1], 2, LONG).await.is_some());
        let other: AccountSid = format!("AC{}", "b".repeat(32)).parse().unwrap();
        assert_eq!(nodes[1].questions(call_sid(1), &[other]).await.unwrap(), []);
        assert!(nodes[1].ask(other, call_sid(1), LONG, LONG).await.unwrap().is_some());
    }

    async fn a_right_runs_out_and_its_holder_changes_nothing_more(database: Database) {
        let catalog = database.node().await;
        let lost = ask(&catalog, 1, SHORT).await.unwrap();
        let held = granted_in_the_end(&catalog, 1).await;
        assert_ne!(lost, held);
        assert_eq!(catalog.note_parent(&lost, call_sid(9)).await.unwrap(), Settled::Stale);
        assert_eq!(catalog.found_nothing(&lost, LONG).await.unwrap(), Settled::Stale);
        assert_eq!(catalog.withdraw(&lost).await.unwrap(), Settled::Stale);
        assert_eq!(standing(&catalog, 1).await, Some(Asked::Open));
        assert_eq!(catalog.found_nothing(&held, LONG).await.unwrap(), Settled::Done);
        assert_eq!(catalog.withdraw(&held).await.unwrap(), Settled::Stale, "it is answered");
        assert_eq!(standing(&catalog, 1).await, Some(Asked::Nothing));
    }

    async fn nothing_holds_for_its_time_on_every_node_and_is_counted_on(database: Database) {
        let (node, other) = (database.node().await, database.node().await);
        let first = granted(&node, 1).await;
        assert_eq!(first.quiet_before, Duration::ZERO);
        assert_eq!(node.found_nothing(&first, SHORT).await.unwrap(), Settled::Done);
        let second = granted_in_the_end(&other, 1).await;
        assert_eq!(second.quiet_before, SHORT);
        assert_eq!(other.found_nothing(&second, LONG).await.unwrap(), Settled::Done);
        for node in [&node, &other] {
            assert_eq!(standing(node, 1).await, Some(Asked::Nothing));
            assert_eq!(ask(node, 1, LONG).await, None);
        }
    }

    async fn what_could_not_be_asked_is_not_remembered(database: Database) {
        let (node, other) = (database.node().await, database.node().await);
        let first = granted(&node, 1).await;
        assert_eq!(node.withdraw(&first).await.unwrap(), Settled::Done);
        assert_eq!(standing(&other, 1).await, None);
        let second = granted(&other, 1).await;
        assert_eq!(second.quiet_before, Duration::ZERO);
        // Nor does it undo what was known before.
        assert_eq!(other.found_nothing(&second, SHORT).await.unwrap(), Settled::Done);
        let third = granted_in_the_end(&node, 1).await;
        assert_eq!(node.withdraw(&third).await.unwrap(), Settled::Done);
        assert_eq!(granted(&other, 1).await.quiet_before, SHORT);
    }

    async fn news_of_a_call_ends_its_nothing(database: Database) {
        let catalog = database.node().await;
        // Its own: by a callback, by a PUT, by a list.
        for (call, said) in [(1, callback(1, "completed")), (2, put(20, 2)), (3, listed(30, 3))] {
            let question = granted(&catalog, call).await;
            assert_eq!(catalog.found_nothing(&question, LONG).await.unwrap(), Settled::Done);
            catalog.accept(&said).await.unwrap();
            assert_eq!(standing(&catalog, call).await, None, "{call}");
            assert_eq!(granted(&catalog, call).await.quiet_before, Duration::ZERO, "{call}");
        }
        // And that of its legs.
        let leg = granted(&catalog, 40).await;
        assert_eq!(catalog.note_parent(&leg, call_sid(4)).await.unwrap(), Settled::Done);
        assert_eq!(catalog.found_nothing(&leg, LONG).await.unwrap(), Settled::Done);
        let stranger = granted(&catalog, 50).await;
        assert_eq!(catalog.found_nothing(&stranger, LONG).await.unwrap(), Settled::Done);
        catalog.accept(&callback(4, "completed")).await.unwrap();
        assert_eq!(standing(&catalog, 40).await, None);
        assert_eq!(standing(&catalog, 50).await, Some(Asked::Nothing), "it is no news of that call");
    }

    async fn twilios_word_on_what_was_put_ends_the_nothing_of_its_calls_legs(database: Database) {
        let catalog = database.node().await;
        let leg = granted(&catalog, 10).await;
        assert_eq!(catalog.note_parent(&leg, call_sid(1)).await.unwrap(), Settled::Done);
        assert_eq!(catalog.found_nothing(&leg, LONG).await.unwrap(), Settled::Done);
        catalog.accept(&put(1, 50)).await.unwrap();
        assert_eq!(standing(&catalog, 10).await, Some(Asked::Nothing), "that it is a leg is not known yet");
        let lease = claim_one(&catalog, LONG).await.lease;
        assert_eq!(catalog.confirm(&lease, &listed(1, 1).details).await.unwrap(), Settled::Done);
        assert_eq!(standing(&catalog, 10).await, None);
    }

    async fn news_while_it_is_asked_is_not_buried_under_nothing(database: Database) {
        let (node, other) = (database.node().await, database.node().await);
        let question = granted(&node, 1).await;
        let leg = granted(&node, 10).await;
        assert_eq!(node.note_parent(&leg, call_sid(1)).await.unwrap(), Settled::Done);
        other.accept(&callback(1, "completed")).await.unwrap();
        for (question, call) in [(question, 1), (leg, 10)] {
            assert_eq!(node.found_nothing(&question, LONG).await.unwrap(), Settled::Stale);
            assert_eq!(standing(&node, call).await, None);
        }
    }

    async fn what_was_found_is_accepted_and_the_call_becomes_another_name(database: Database) {
        let catalog = database.node().await;
        // Under its own SID.
        let own = granted(&catalog, 1).await;
        catalog.found(&own, &[listed(1, 1)]).await.unwrap();
        assert_eq!((answer(&catalog, 1).await, standing(&catalog, 1).await), (Some(recording_id(1)), None));
        // Under its parent's, of which another leg was asked for in vain before.
        let sibling = granted(&catalog, 21).await;
        assert_eq!(catalog.note_parent(&sibling, call_sid(2)).await.unwrap(), Settled::Done);
        assert_eq!(catalog.found_nothing(&sibling, LONG).await.unwrap(), Settled::Done);
        let leg = granted(&catalog, 20).await;
        let absent = AnnouncedBy::Found { by: FoundBy::Request, status: "absent".to_owned(), error_code: None };
        catalog.found(&leg, &[listed(3, 2), Announcement { by: absent, ..listed(2, 2) }]).await.unwrap();
        for call in [2, 20] {
            assert_eq!(answer(&catalog, call).await, Some(recording_id(3)), "{call}");
            assert_eq!(standing(&catalog, call).await, None);
        }
        assert_eq!(standing(&catalog, 21).await, None);
        let history = catalog.history(&recording_id(3)).await.unwrap();
        assert_eq!(history[0].detail["by"], "request");
        // Under a parent that is known.
        let known = catalog.call(call_sid(2), None).await.unwrap().remove(0).recordings;
        catalog.found_known(&granted(&catalog, 21).await, &known).await.unwrap();
        assert_eq!(answer(&catalog, 21).await, Some(recording_id(3)));
    }

    async fn what_was_found_counts_though_the_right_is_lost(database: Database) {
        let catalog = database.node().await;
        let lost = ask(&catalog, 1, SHORT).await.unwrap();
        let held = granted_in_the_end(&catalog, 1).await;
        catalog.found(&lost, &[listed(1, 2)]).await.unwrap();
        assert_eq!(answer(&catalog, 1).await, Some(recording_id(1)));
        assert_eq!(catalog.found_nothing(&held, LONG).await.unwrap(), Settled::Stale);
        // Told twice, it is there once.
        catalog.found(&held, &[listed(1, 2)]).await.unwrap();
        let history = catalog.history(&recording_id(1)).await.unwrap();
        assert_eq!(history.iter().filter(|entry| entry.kind == "recording.accepted").count(), 1);
    }

    async fn nodes_that_find_and_are_told_the_same_get_along(database: Database) {
        let nodes = join_all((0..4).map(|_| database.node())).await;
        let tasks = (0..60u32).map(|at| {
            let node = nodes[at as usize % nodes.len()].clone();
            tokio::spawn(async move {
                // Legs of one call, its recordings in any order, and its callbacks.
                match at % 3 {
                    0 => drop(node.accept(&Announcement { details: listed(0, 1).details, ..callback(at % 5, "completed") }).await.unwrap()),
                    turn => {
                        let leg = granted(&node, 100 + at).await;
                        let _ = node.note_parent(&leg, call_sid(1)).await.unwrap();
                        let mut told: Vec<_> = (0..5).map(|number| listed(number, 1)).collect();
                        told.rotate_left(at as usize % 5);
                        match turn {
                            1 => node.found(&leg, &told).await.unwrap(),
                            _ => drop(node.found_nothing(&leg, LONG).await.unwrap()),
                        }
                    }
                }
            })
        });
        join_all(tasks).await.into_iter().for_each(|done| done.unwrap());
        assert_eq!(nodes[0].call(call_sid(1), None).await.unwrap()[0].recordings.len(), 5);
    }

    async fn what_ended_long_ago_is_removed_by_the_way(database: Database) {
        let catalog = database.node().await;
        for call in 1..=50 {
            let question = granted(&catalog, call).await;
            assert_eq!(catalog.found_nothing(&question, Duration::from_millis(1)).await.unwrap(), Settled::Done);
        }
        assert_eq!(remembered(&database).await, 50);
        let mut call = 1000;
        eventually("the old ones are gone", async || {
            call += 1;
            let question = catalog.ask(account(), call_sid(call), LONG, SHORT).await.unwrap().unwrap();
            assert_eq!(catalog.found_nothing(&question, LONG).await.unwrap(), Settled::Done);
            let new = i64::from(call) - 1000;
            (remembered(&database).await == new).then_some(())
        })
        .await;
        assert_eq!(standing(&catalog, 1001).await, Some(Asked::Nothing), "what holds is kept");
    }
}
