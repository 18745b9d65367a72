//! Two tenants over all routes: what is another's is as if it were not there.
//!
//! A row a route and method; a route that has no row fails the test, and so does
//! a row without a route. Each is asked with the key of one tenant: about what is
//! the other's, and about what does not exist. Status, headers and body must be
//! the same, byte for byte. Then the other tenant asks, who must get more.

use std::collections::BTreeSet;

use callvault::domain::key::KeyId;
use callvault::domain::recording::RecordingId;
use callvault::domain::share::Share;
use callvault::domain::sid::{AccountSid, CallSid};
use callvault::http;
use callvault::twilio::simulator::{Audio, SimulatedRecording};
use reqwest::{Method, StatusCode};
use serde_json::Value;

use super::keys::{ask, create};
use crate::support::world::{ACCOUNT, Parts, Service, World, call_sid, started_at};

/// What a row claims.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Claim {
    /// The other's is as what does not exist, and its owner gets something else.
    Hidden,
    /// Nothing of the other's is in it; its owner finds it there.
    Listed,
    /// It tells nobody anything of a tenant.
    Nobodys,
}
use Claim::{Hidden, Listed, Nobodys};

/// Method, path with its query, body, claim. `{…}` stands for a name: of the
/// other's, or of what does not exist. What changes something comes last.
const ROWS: &[(&str, &str, &str, Claim)] = &[
    ("GET", "/webhooks/twilio/recording?AccountSid={account_sid}&RecordingSid={recording_sid}", "", Nobodys),
    ("POST", "/webhooks/twilio/recording?AccountSid={account_sid}", "", Nobodys),
    ("GET", "/healthz", "", Nobodys),
    ("GET", "/readyz", "", Nobodys),
    ("GET", "/metrics", "", Nobodys),
    ("GET", "/openapi.json", "", Nobodys),
    ("GET", "/docs", "", Nobodys),
    ("GET", "/docs/style.css", "", Nobodys),
    ("GET", "/s/{token}", "", Nobodys),
    ("GET", "/v1/calls/{call_sid}", "", Hidden),
    ("GET", "/v1/calls/{call_sid}/audio", "", Hidden),
    ("GET", "/v1/calls/{call_sid}/link", "", Hidden),
    ("GET", "/v1/calls/{call_sid}/content", "", Hidden),
    ("GET", "/api/calls/{call_sid}/download", "", Hidden),
    ("GET", "/v1/blobs/{blob}", "", Hidden),
    ("GET", "/v1/recordings", "", Listed),
    ("GET", "/v1/recordings?account_sid={account_sid}", "", Listed),
    ("GET", "/v1/recordings?call_sid={call_sid}&call_sid=CA00000000000000000000000000000001", "", Listed),
    ("GET", "/v1/recordings?state=stored&limit=1", "", Listed),
    ("GET", "/v1/events?limit=1000&wait=0", "", Listed),
    ("GET", "/v1/events?wait=0&account_sid={account_sid}", "", Listed),
    ("GET", "/v1/events?wait=0&call_sid={call_sid}", "", Listed),
    ("GET", "/v1/recordings/{recording_sid}", "", Hidden),
    ("GET", "/v1/recordings/{recording_sid}/audio", "", Hidden),
    ("GET", "/v1/recordings/{recording_sid}/link", "", Hidden),
    ("GET", "/v1/recordings/{recording_sid}/content", "", Hidden),
    ("POST", "/v1/calls/{call_sid}/share", "", Hidden),
    ("POST", "/v1/recordings/{recording_sid}/share", "", Hidden),
    ("PUT", "/v1/calls/{call_sid}/recording", r#"{"recording_url": "{recording_url}"}"#, Hidden),
    ("POST", "/v1/recordings/{recording_sid}/fetch", "", Hidden),
    // Receivers are the service's, and get the events of all tenants.
    ("GET", "/v1/webhooks", "", Nobodys),
    ("GET", "/v1/webhooks/{receiver}/deliveries", "", Nobodys),
    ("POST", "/v1/webhooks/{receiver}/deliveries/{event}/retry", "", Nobodys),
    ("POST", "/v1/webhooks/{receiver}/enable", "", Nobodys),
    ("PUT", "/v1/recordings/{recording_sid}/hold", "", Hidden),
    ("DELETE", "/v1/recordings/{recording_sid}/hold", "", Hidden),
    ("DELETE", "/v1/recordings/{recording_sid}", "", Hidden),
    ("DELETE", "/v1/calls/{call_sid}", "", Hidden),
];

/// What the names in a row stand for.
struct Names(Vec<(&'static str, String)>);

impl Names {
    fn of(id: RecordingId, call: CallSid, sha256: &str) -> Self {
        let url = format!("https://api.twilio.com/2010-04-01/Accounts/{}/Recordings/{}", id.account, id.recording);
        let ends_at = "2100-01-01T00:00:00Z".parse().expect("a time");
        // Someone who knows all the names, but not the secret.
        let forged = Share { recording: id, key: KeyId::from([1; 8]), ends_at }.sign(1, &[0; 32]);
        Self(vec![
            ("{account_sid}", id.account.to_string()),
            ("{call_sid}", call.to_string()),
            ("{recording_sid}", id.recording.to_string()),
            ("{recording_url}", url),
            ("{blob}", format!("sha256:{sha256}")),
            ("{token}", forged),
        ])
    }

    fn fill(&self, template: &str) -> String {
        self.0.iter().fold(template.to_owned(), |text, (name, value)| text.replace(name, value))
    }
}

/// All that a client can tell two answers apart by.
#[derive(Debug, PartialEq, Eq)]
struct Answer {
    status: StatusCode,
    headers: Vec<(String, String)>,
    body: String,
}

async fn answer(world: &World, service: &Service, row: &Row, names: &Names, key: &str) -> Answer {
    let (method, path, body, _) = row;
    let method: Method = method.parse().expect("a method");
    let url = format!("{}{}", service.url, names.fill(path));
    let mut request = world.http.request(method, url).bearer_auth(key);
    if !body.is_empty() {
        request = request.header("content-type", "application/json").body(names.fill(body));
    }
    let answer = request.send().await.expect("the service answers");
    let status = answer.status();
    let headers = answer.headers().iter().filter(|(name, _)| *name != "date");
    let headers = headers.map(|(name, value)| (name.to_string(), format!("{value:?}"))).collect();
    Answer { status, headers, body: answer.text().await.expect("a whole body") }
}

type Row = (&'static str, &'static str, &'static str, Claim);

/// HEAD is asked wherever GET is.
fn rows() -> Vec<Row> {
    let heads = ROWS.iter().filter(|row| row.0 == "GET").map(|row| ("HEAD", row.1, row.2, row.3));
    heads.chain(ROWS.iter().copied()).collect()
}

/// Every route that there is, as the service itself tells: method and path.
pub async fn routes(world: &World, service: &Service) -> BTreeSet<(String, String)> {
    let mut routes = BTreeSet::new();
    for path in http::paths() {
        let url = format!("{}{}", service.url, path.replace(['{', '}'], ""));
        let answer = world.http.request(Method::from_bytes(b"NONE").unwrap(), url).send().await.expect("an answer");
        assert_eq!(answer.status(), StatusCode::METHOD_NOT_ALLOWED, "{path}");
        let allowed = answer.headers()["allow"].to_str().expect("text").to_owned();
        routes.extend(allowed.split(',').map(|method| (method.trim().to_owned(), path.to_owned())));
    }
    routes
}

async fn store(world: &World, service: &Service, id: RecordingId, call: CallSid) -> Value {
    let mut recording = SimulatedRecording::speech(id, call, started_at());
    // The two tenants have nothing in common, not even bytes.
    recording.audio = Audio::made_up_wav(40_000, if id.account.as_str() == ACCOUNT { 2 } else { 4 });
    world.simulator.add(recording);
    service.deliver(&world.callback(id.recording)).await;
    service.recording_in(id.recording, "stored").await
}

on_all_parts! {
    async fn what_is_another_tenants_is_as_if_it_were_not_there_on_every_route(world: World) {
        let other: AccountSid = format!("AC{}", "b".repeat(32)).parse().unwrap();
        world.add_account(other);
        let service = world.start().await;
        let of_rows: BTreeSet<(String, String)> = rows()
            .iter()
            .map(|(method, path, ..)| ((*method).to_owned(), path.split('?').next().unwrap().to_owned()))
            .collect();
        assert_eq!(of_rows, routes(&world, &service).await, "a row a route, and a route a row");

        let id = |account, digit: &str| RecordingId { account, recording: format!("RE{}", digit.repeat(32)).parse().unwrap() };
        let (ours, theirs) = (id(ACCOUNT.parse().unwrap(), "1"), id(other, "2"));
        store(&world, &service, ours, call_sid(1)).await;
        let shown = store(&world, &service, theirs, call_sid(2)).await;
        let sha256 = shown["sha256"].as_str().unwrap();
        let nothing = id(format!("AC{}", "c".repeat(32)).parse().unwrap(), "3");
        let nothing = Names::of(nothing, call_sid(3), &"3".repeat(64));
        let theirs_named = Names::of(theirs, call_sid(2), sha256);
        let (our_key, _) = create(&world, &["--scope", "read,ingest,admin", "--account", ACCOUNT]);
        let (their_key, _) = create(&world, &["--scope", "read,ingest,admin", "--account", other.as_str()]);
        let known = [theirs.account.as_str(), theirs.recording.as_str(), call_sid(2).as_str(), sha256].map(str::to_owned);

        for row in rows() {
            let of_theirs = answer(&world, &service, &row, &theirs_named, &our_key).await;
            let of_nothing = answer(&world, &service, &row, &nothing, &our_key).await;
            if row.1 != "/readyz" {
                assert_eq!(of_theirs, of_nothing, "{row:?}");
            }
            assert!(!known.iter().any(|word| of_theirs.body.contains(word)), "{row:?}: {}", of_theirs.body);
            let is_right = match row.3 {
                Hidden => of_theirs.status == StatusCode::NOT_FOUND,
                Listed => of_theirs.status == StatusCode::OK,
                Nobodys => true,
            };
            assert!(is_right, "{row:?}: {of_theirs:?}");
        }
        let path = format!("/v1/recordings/{}", theirs.recording);
        let after: Value = ask(&world, &service, Method::GET, &path, &their_key).await.json().await.unwrap();
        assert_eq!(after, shown, "nothing came of it");

        for row in rows() {
            let of_theirs = answer(&world, &service, &row, &theirs_named, &their_key).await;
            match row.3 {
                Hidden => assert!(of_theirs.status.as_u16() < 400, "{row:?}: {of_theirs:?}"),
                Listed if row.0 != "HEAD" => assert!(of_theirs.body.contains(theirs.recording.as_str()), "{row:?}"),
                Listed | Nobodys => {}
            }
        }
    }
}
