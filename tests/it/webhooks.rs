//! Events that are posted to receivers.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use aws_lc_rs::hmac;
use axum::Router;
use axum::body::Bytes;
use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use axum::routing::any;
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::events::announce;
use crate::keys::{ask, create};
use crate::recheck::sql;
use crate::support::cluster::{self, Node};
use crate::support::eventually;
use crate::support::servers::free_port;
use crate::support::world::{ACCOUNT, Parts, Service, World, debug_binary};

const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

/// What a receiver got.
#[derive(Debug, Clone)]
pub struct Got {
    id: String,
    timestamp: i64,
    signature: String,
    body: String,
}

impl Got {
    fn event(&self) -> Value {
        serde_json::from_str(&self.body).unwrap()
    }

    fn kind(&self) -> String {
        self.event()["type"].as_str().unwrap().to_owned()
    }

    /// As Standard Webhooks has a receiver check it.
    fn is_signed(&self) -> bool {
        let secret = BASE64.decode(SECRET.strip_prefix("whsec_").unwrap()).unwrap();
        let key = hmac::Key::new(hmac::HMAC_SHA256, &secret);
        let signed = format!("{}.{}.{}", self.id, self.timestamp, self.body);
        let signature = BASE64.decode(self.signature.strip_prefix("v1,").unwrap()).unwrap();
        hmac::verify(&key, signed.as_bytes(), &signature).is_ok()
    }
}

/// How a receiver answers, by what it got and how often it got that before.
type Answer = Box<dyn Fn(&Got, usize) -> Reply + Send + Sync>;

pub enum Reply {
    Status(u16),
    Redirect(String),
    Never,
}

/// An application that is posted events.
pub struct Application {
    pub url: String,
    got: Arc<Mutex<Vec<Got>>>,
    _running: DropGuard,
}

impl Application {
    pub async fn start(answer: impl Fn(&Got, usize) -> Reply + Send + Sync + 'static) -> Self {
        Self::start_on(free_port(), answer).await
    }

    async fn start_on(port: u16, answer: impl Fn(&Got, usize) -> Reply + Send + Sync + 'static) -> Self {
        let got: Arc<Mutex<Vec<Got>>> = Arc::default();
        let answer: Arc<Answer> = Arc::new(Box::new(answer));
        let kept = got.clone();
        let receive = move |request: Request| {
            let (kept, answer) = (kept.clone(), answer.clone());
            async move { receive(request, &kept, &answer).await }
        };
        let listener = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
        let stopping = CancellationToken::new();
        tokio::spawn(callvault::http::serve(listener, Router::new().fallback(any(receive)), stopping.clone()));
        Self { url: format!("http://127.0.0.1:{port}/hook"), got, _running: stopping.drop_guard() }
    }

    fn got(&self) -> Vec<Got> {
        self.got.lock().unwrap().clone()
    }

    /// What it got once it is so much.
    pub async fn has(&self, count: usize) -> Vec<Got> {
        eventually("the receiver got it", async || Some(self.got()).filter(|got| got.len() >= count)).await
    }
}

async fn receive(request: Request, kept: &Mutex<Vec<Got>>, answer: &Answer) -> Response {
    let (parts, body) = request.into_parts();
    assert_eq!((parts.method, &parts.headers["content-type"]), (Method::POST, &"application/json".parse().unwrap()));
    let header = |name: &str| parts.headers[name].to_str().unwrap().to_owned();
    let body: Bytes = axum::body::to_bytes(body, 1 << 20).await.unwrap();
    let got = Got {
        id: header("webhook-id"),
        timestamp: header("webhook-timestamp").parse().unwrap(),
        signature: header("webhook-signature"),
        body: String::from_utf8(body.to_vec()).unwrap(),
    };
    let reply = {
        let mut kept = kept.lock().unwrap();
        let before = kept.iter().filter(|known| known.id == got.id).count();
        kept.push(got.clone());
        answer(&got, before)
    };
    match reply {
        Reply::Status(status) => StatusCode::from_u16(status).unwrap().into_response(),
        Reply::Redirect(to) => (StatusCode::TEMPORARY_REDIRECT, [("location", to)]).into_response(),
        Reply::Never => std::future::pending().await,
    }
}

fn takes(_: &Got, _: usize) -> Reply {
    Reply::Status(204)
}

/// Has services post to that URL.
pub fn post_to(world: &mut World, url: &str, types: &str) {
    world.set("CALLVAULT_EVENTS_URL", url);
    world.set("CALLVAULT_EVENTS_SECRET", SECRET);
    world.set("CALLVAULT_EVENTS_TYPES", types);
}

/// The same for a second receiver.
pub fn post_to_another(world: &mut World, url: &str) {
    let path = world.folder().join("webhooks.toml");
    std::fs::write(&path, format!("[[webhooks]]\nurl = \"{url}\"\nsecret = \"{SECRET}\"\n")).unwrap();
    world.set("CALLVAULT_CONFIG", path.to_str().unwrap());
}

async fn feed(service: &Service) -> Vec<Value> {
    let (_, page) = service.json("/v1/events?wait=0&limit=1000").await;
    page["events"].as_array().unwrap().clone()
}

async fn receivers(service: &Service) -> Vec<Value> {
    let (status, body) = service.json("/v1/webhooks").await;
    assert_eq!(status, StatusCode::OK, "{body}");
    body["webhooks"].as_array().unwrap().clone()
}

async fn only_receiver(service: &Service) -> Value {
    let mut all = receivers(service).await;
    assert_eq!(all.len(), 1);
    all.remove(0)
}

async fn post(service: &Service, path: &str) -> (StatusCode, Value) {
    let answer = service.request(Method::POST, path).send().await.unwrap();
    (answer.status(), answer.json().await.unwrap())
}

/// A receiver's deliveries once they are as many in that state, oldest first.
async fn deliveries(service: &Service, receiver: &Value, state: &str, count: usize) -> Vec<Value> {
    let path = format!("/v1/webhooks/{}/deliveries?state={state}", receiver["id"].as_str().unwrap());
    eventually("as many deliveries are in that state", async || {
        let (status, body) = service.json(&path).await;
        assert_eq!(status, StatusCode::OK, "{body}");
        let mut deliveries = body["deliveries"].as_array().unwrap().clone();
        deliveries.reverse();
        (deliveries.len() == count).then_some(deliveries)
    })
    .await
}

on_all_parts! {
    async fn a_receiver_gets_what_happens_from_now_on_signed_and_as_the_feed_tells_it(world: World) {
        let before = world.start().await;
        announce(&world, &before, 100).await;
        eventually("it is in the feed", async || (feed(&before).await.len() == 1).then_some(())).await;
        before.signal("TERM");
        assert!(before.end().await.success());

        let application = Application::start(takes).await;
        post_to(&mut world, &format!("{}?token=in-the-query", application.url), "");
        let service = world.start().await;
        let id = world.record(1);
        service.deliver(&world.callback(id.recording)).await;
        service.recording_in(id.recording, "stored").await;
        let got = application.has(2).await;
        let told = eventually("all is in the feed", async || Some(feed(&service).await).filter(|all| all.len() == 3)).await;
        for (got, told) in got.iter().zip(&told[1..]) {
            assert!(got.is_signed());
            assert_eq!((got.id.as_str(), got.kind().as_str()), (told["id"].as_str().unwrap(), told["type"].as_str().unwrap()));
            assert!((jiff::Timestamp::now().as_second() - got.timestamp).abs() < 60);
        }
        assert_eq!(got[1].event(), told[2], "the same as the feed");
        let receiver = only_receiver(&service).await;
        let delivered = deliveries(&service, &receiver, "delivered", 2).await;
        assert_eq!(delivered[1]["event_id"], told[2]["id"]);
        assert_eq!((&delivered[1]["attempts"], &delivered[1]["last_status"]), (&json!(1), &json!(204)));
        let receiver = only_receiver(&service).await;
        assert_eq!(receiver["url"], application.url, "without the query");
        assert_eq!((&receiver["state"], &receiver["pending"]), (&json!("active"), &json!(0)));
        assert!(!receiver.to_string().contains(SECRET) && !service.log().contains("in-the-query"));
        assert!(!service.log().contains(SECRET));
        assert_eq!(application.got().len(), 2, "each once");
    }

    async fn what_is_not_taken_is_posted_again_and_later_events_do_not_wait_for_it(world: World) {
        let application = Application::start(|got, before| {
            let is_first = got.event()["recording"]["recording_sid"].as_str().unwrap().ends_with('1');
            Reply::Status(if is_first && before < 4 { 500 } else { 200 })
        })
        .await;
        post_to(&mut world, &application.url, "recording.accepted");
        let service = world.start().await;
        for number in 1..=3 {
            announce(&world, &service, number).await;
        }
        let receiver = only_receiver(&service).await;
        let delivered = deliveries(&service, &receiver, "delivered", 3).await;
        let attempts: Vec<i64> = delivered.iter().map(|one| one["attempts"].as_i64().unwrap()).collect();
        assert_eq!(attempts, [5, 1, 1]);
        let got = application.got();
        let first = &got.iter().filter(|got| got.id == delivered[0]["event_id"]).collect::<Vec<_>>();
        assert_eq!(first.len(), 5, "always under the same id");
        assert!(first.iter().all(|got| got.is_signed()));
        let last_of = |id: &Value| got.iter().rposition(|got| got.id == *id).unwrap();
        assert!(last_of(&delivered[1]["event_id"]) < last_of(&delivered[0]["event_id"]), "others went before it");
        let metrics = service.get("/metrics").await.text().await.unwrap();
        assert!(metrics.contains("callvault_webhook_posts_total{outcome=\"failed\"} 4"), "{metrics}");
        assert!(metrics.contains("callvault_webhook_posts_total{outcome=\"delivered\"} 3"));
    }

    async fn a_receiver_that_never_answers_delays_no_other(world: World) {
        let stuck = Application::start(|_, _| Reply::Never).await;
        let quick = Application::start(takes).await;
        post_to(&mut world, &stuck.url, "");
        post_to_another(&mut world, &quick.url);
        let service = world.start().await;
        for number in 1..=30 {
            announce(&world, &service, number).await;
        }
        let got = quick.has(30).await;
        let ids: Vec<_> = got.iter().map(|got| got.id.clone()).collect();
        let mut told: Vec<_> = feed(&service).await.iter().map(|event| event["id"].as_str().unwrap().to_owned()).collect();
        told.sort();
        let mut sorted = ids.clone();
        sorted.sort();
        assert_eq!(sorted, told);
        // The right to post to either is granted apart: one may begin a poll after the other.
        let standing = eventually("all of them wait for the one that never answers", async || {
            let standing = receivers(&service).await;
            let stuck = standing.iter().find(|one| one["url"] == stuck.url).unwrap();
            (stuck["pending"] == 30).then_some(standing)
        })
        .await;
        let of = |url: &str| standing.iter().find(|one| one["url"] == url).unwrap().clone();
        deliveries(&service, &of(&quick.url), "delivered", 30).await;
        let first = service.json(&format!("/v1/webhooks/{}/deliveries?limit=7", of(&quick.url)["id"].as_str().unwrap())).await.1;
        assert_eq!(first["deliveries"].as_array().unwrap().len(), 7);
        assert_eq!(first["next"], first["deliveries"][6]["event_id"]);
    }

    async fn where_nobody_answers_all_waits_and_arrives_once_somebody_does(world: World) {
        let port = free_port();
        post_to(&mut world, &format!("http://127.0.0.1:{port}/hook"), "");
        let service = world.start().await;
        for number in 1..=5 {
            announce(&world, &service, number).await;
        }
        let receiver = eventually("it is found that nobody is there", async || {
            let receiver = only_receiver(&service).await;
            (receiver["state"] == "resting" && receiver["pending"] == 5).then_some(receiver)
        })
        .await;
        let application = Application::start_on(port, takes).await;
        let got = application.has(5).await;
        assert!(got.iter().all(Got::is_signed));
        let delivered = deliveries(&service, &receiver, "delivered", 5).await;
        assert!(delivered.iter().any(|one| one["attempts"].as_i64() > Some(1)));
        assert_eq!(only_receiver(&service).await["state"], "active");
    }

    async fn whoever_answers_410_gets_nothing_more_until_it_is_enabled(world: World) {
        let application = Application::start(|got, _| {
            let first = got.event()["recording"]["recording_sid"].as_str().unwrap().ends_with('1');
            Reply::Status(if first { 410 } else { 200 })
        })
        .await;
        post_to(&mut world, &application.url, "");
        let service = world.start().await;
        announce(&world, &service, 1).await;
        let receiver = eventually("it is left alone", async || {
            Some(only_receiver(&service).await).filter(|receiver| receiver["state"] == "disabled")
        })
        .await;
        announce(&world, &service, 2).await;
        eventually("the second event is in the feed", async || (feed(&service).await.len() == 2).then_some(())).await;
        let id = receiver["id"].as_str().unwrap();
        let failed = deliveries(&service, &receiver, "failed", 1).await;
        let retry = format!("/v1/webhooks/{id}/deliveries/{}/retry", failed[0]["event_id"].as_str().unwrap());
        let (status, problem) = post(&service, &retry).await;
        assert_eq!((status, &problem["code"]), (StatusCode::CONFLICT, &json!("conflict")));
        let (status, enabled) = post(&service, &format!("/v1/webhooks/{id}/enable")).await;
        assert_eq!((status, &enabled["state"]), (StatusCode::OK, &json!("active")));
        announce(&world, &service, 3).await;
        let got = application.has(2).await;
        let numbers: Vec<_> = got.iter().map(|got| got.event()["recording"]["recording_sid"].to_string()).collect();
        assert!(numbers[0].ends_with("1\"") && numbers[1].ends_with("3\""), "{numbers:?}");
    }

    async fn a_delivery_can_be_looked_at_and_repeated_by_hand(world: World) {
        let application = Application::start(takes).await;
        post_to(&mut world, &application.url, "recording.accepted,recording.stored");
        let service = world.start().await;
        announce(&world, &service, 1).await;
        let receiver = only_receiver(&service).await;
        let delivered = deliveries(&service, &receiver, "delivered", 1).await;
        let path = format!("/v1/webhooks/{}/deliveries", receiver["id"].as_str().unwrap());
        let event = delivered[0]["event_id"].as_str().unwrap();
        let (status, again) = post(&service, &format!("{path}/{event}/retry")).await;
        assert_eq!((status, &again["state"]), (StatusCode::ACCEPTED, &json!("pending")));
        let got = application.has(2).await;
        assert_eq!((&got[0].id, &got[1].id), (&event.to_owned(), &event.to_owned()));
        let delivered = deliveries(&service, &receiver, "delivered", 1).await;
        assert_eq!(delivered[0]["attempts"], 2);
        for (method, path) in [
            (Method::POST, format!("{path}/0000000000001-000000000000001/retry")),
            (Method::POST, format!("{path}/x/retry")),
            (Method::GET, "/v1/webhooks/wh_unknown/deliveries".to_owned()),
            (Method::POST, "/v1/webhooks/wh_unknown/enable".to_owned()),
        ] {
            let answer = service.request(method, &path).send().await.unwrap();
            assert_eq!(answer.status(), StatusCode::NOT_FOUND, "{path}");
        }
        for query in ["state=lost", "after=x", "limit=0"] {
            assert_eq!(service.get(&format!("{path}?{query}")).await.status(), StatusCode::BAD_REQUEST, "{query}");
        }
        // Events of all accounts go to receivers: nobody who sees one of them alone sees any of this.
        let (bound, _) = create(&world, &["--scope", "admin", "--account", ACCOUNT]);
        for (method, path) in [(Method::GET, "/v1/webhooks"), (Method::GET, &path), (Method::POST, &format!("{path}/{event}/retry"))] {
            let answer = ask(&world, &service, method, path, &bound).await;
            assert_eq!(answer.status(), StatusCode::FORBIDDEN, "{path}");
        }
        let without_key = world.http.get(format!("{}/v1/webhooks", service.url)).send().await.unwrap();
        assert_eq!(without_key.status(), StatusCode::UNAUTHORIZED);
    }

    async fn redirects_are_not_followed(world: World) {
        let elsewhere = Application::start(takes).await;
        let to = elsewhere.url.clone();
        let application = Application::start(move |_, before| match before {
            0..=2 => Reply::Redirect(to.clone()),
            _ => Reply::Status(200),
        })
        .await;
        post_to(&mut world, &application.url, "");
        let service = world.start().await;
        announce(&world, &service, 1).await;
        deliveries(&service, &only_receiver(&service).await, "delivered", 1).await;
        assert_eq!((application.got().len(), elsewhere.got().len()), (4, 0));
    }
}

/// The ids of what an application got, each as often as it got it.
fn counts(got: &[Got]) -> BTreeMap<String, usize> {
    got.iter().fold(BTreeMap::new(), |mut counts, got| {
        *counts.entry(got.id.clone()).or_default() += 1;
        counts
    })
}

/// Its catalog knows much, and was not lost: nobody wants to be told of all that.
#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_that_is_new_is_told_nothing_old_though_its_enrolling_is_late() {
    let mut world = World::new(Parts::Servers).await;
    let before = world.start().await;
    announce(&world, &before, 100).await;
    eventually("it is in the feed", async || (feed(&before).await.len() == 1).then_some(())).await;
    before.signal("TERM");
    assert!(before.end().await.success());

    for statement in [
        "CREATE SEQUENCE in_vain",
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS \
         $$ BEGIN PERFORM nextval('in_vain'); RAISE EXCEPTION 'not now'; END $$",
        "CREATE TRIGGER refused BEFORE INSERT ON receivers FOR EACH ROW WHEN (NEW.after_seq > 0) EXECUTE FUNCTION refuse()",
    ] {
        sql(&world, statement.to_owned()).await;
    }
    let application = Application::start(takes).await;
    post_to(&mut world, &application.url, "");
    let service = world.start_unready(free_port(), debug_binary());
    // For longer than whoever posts waits between two tries.
    eventually("it was enrolled in vain", async || {
        (sql(&world, "SELECT last_value FROM in_vain".to_owned()).await >= 5).then_some(())
    })
    .await;
    sql(&world, "DROP TRIGGER refused ON receivers".to_owned()).await;
    eventually("it is enrolled", async || {
        (sql(&world, "SELECT count(*) FROM receivers WHERE after_seq > 0".to_owned()).await == 1).then_some(())
    })
    .await;
    eventually("it is ready", async || (service.get("/readyz").await.status() == StatusCode::OK).then_some(())).await;
    announce(&world, &service, 101).await;
    let got = application.has(1).await;
    let told =
        eventually("both are in the feed", async || Some(feed(&service).await).filter(|all| all.len() == 2)).await;
    assert_eq!(got[0].id, told[1]["id"].as_str().unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_nodes_post_each_event_once_and_when_one_dies_another_goes_on() {
    let mut world = World::new(Parts::Servers).await;
    let application = Application::start(takes).await;
    post_to(&mut world, &application.url, "");
    let mut nodes = world.start_nodes(3).await;
    for number in 1..=60 {
        announce(&world, &nodes[number as usize % 3], number).await;
    }
    let got = application.has(60).await;
    assert_eq!(counts(&got).len(), 60);
    assert!(counts(&got).values().all(|times| *times == 1), "{got:?}");

    let poster = nodes.iter().position(|node| node.log().contains("an event was delivered")).unwrap();
    let dead = nodes.remove(poster);
    dead.kill();
    for number in 61..=80 {
        announce(&world, &nodes[number as usize % 2], number).await;
    }
    eventually("another node posts", async || (counts(&application.got()).len() == 80).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_catalog_that_is_away_only_delays_what_is_to_be_posted() {
    let mut world = World::new(Parts::Servers).await;
    let application = Application::start(takes).await;
    post_to(&mut world, &application.url, "");
    let nodes: Vec<Node> = cluster::start(&world, 1).await;
    announce(&world, &nodes[0], 1).await;
    application.has(1).await;
    nodes[0].catalog.refuse();
    eventually("the catalog is away", async || nodes[0].trouble("catalog_unreachable").await).await;
    nodes[0].catalog.heal();
    eventually("a callback is taken again", async || {
        let callback = world.simulator.callback(world.record(2).recording, "in-progress").unwrap();
        (nodes[0].send(&callback).await.status() == StatusCode::NO_CONTENT).then_some(())
    })
    .await;
    eventually("its event arrives", async || (counts(&application.got()).len() == 2).then_some(())).await;
}
