//! What is taken for a callback of Twilio's, and what is not.

use callvault::twilio::signature::{self, Signed};
use reqwest::StatusCode;
use serde_json::Value;

use crate::support::servers::Postgres;
use crate::support::world::{ACCOUNT, AUTH_TOKEN, Parts, Service, World, call_sid, debug_binary};
use crate::support::{eventually, servers};

async fn is_unknown(service: &Service, recording: callvault::domain::sid::RecordingSid) {
    let (status, _) = service.json(&format!("/v1/recordings/{recording}")).await;
    assert_eq!(status, StatusCode::NOT_FOUND);
}

on_all_parts! {
    async fn a_forged_callback_is_refused_and_leaves_no_row(world: World) {
        let service = world.start().await;
        let id = world.record(1);
        let right = world.callback(id.recording);
        let url = format!("{}/webhooks/twilio/recording", service.url);
        let post = async |signature: Option<String>, body: String, url: &str| {
            let mut request = world.http.post(url).header("content-type", "application/x-www-form-urlencoded").body(body);
            if let Some(signature) = signature {
                request = request.header("x-twilio-signature", signature);
            }
            let answer = request.send().await.unwrap();
            let status = answer.status();
            (status, answer.json::<Value>().await.unwrap()["code"].as_str().unwrap().to_owned())
        };
        let refused = (StatusCode::FORBIDDEN, "bad_signature".to_owned());
        let mut other_token = right.clone();
        other_token.auth_token = "somebody-elses-token".to_owned();
        let altered = right.clone().with("RecordingDuration", "7");
        let longer = right.clone().with("Extra", "1");
        assert_eq!(post(None, right.form(), &url).await, refused, "not signed");
        assert_eq!(post(Some("nonsense".to_owned()), right.form(), &url).await, refused, "not a signature");
        assert_eq!(post(Some(other_token.signature(&url)), right.form(), &url).await, refused, "another token");
        assert_eq!(post(Some(right.signature(&url)), altered.form(), &url).await, refused, "an altered field");
        assert_eq!(post(Some(right.signature(&url)), longer.form(), &url).await, refused, "a field more");
        let elsewhere = format!("{}/webhooks/other", service.url);
        assert_eq!(post(Some(right.signature(&elsewhere)), right.form(), &url).await, refused, "signed for another path");
        let with_query = format!("{url}?tenant=1");
        assert_eq!(post(Some(right.signature(&url)), right.form(), &with_query).await, refused, "another query");
        let stranger = right.clone().with("AccountSid", &format!("AC{}", "9".repeat(32)));
        assert_eq!(post(Some(stranger.signature(&url)), stranger.form(), &url).await, refused, "an unknown account");
        is_unknown(&service, id.recording).await;
        assert_eq!(world.simulator.seen(), []);
        // Whoever set it up wrong is told, and a flood of them fills no log.
        let log = service.log();
        let told: Vec<&str> = log.lines().filter(|line| line.contains("a callback was refused")).collect();
        let [of_ours, of_strangers] = &told[..] else { panic!("{told:#?}") };
        for (name, value) in [("public_url", service.url.as_str()), ("account", ACCOUNT)] {
            assert!(of_ours.contains(&format!("\"{name}\":\"{value}\"")), "{of_ours}");
        }
        assert!(of_strangers.contains("no recording of an account of these settings"), "{of_strangers}");
        let metrics = service.get("/metrics").await.text().await.unwrap();
        let wrong = format!("callvault_callback_signatures_total{{account=\"{ACCOUNT}\",signature=\"wrong\"}} 7\n");
        for series in [
            "callvault_callbacks_total{outcome=\"bad_signature\"} 7\n",
            "callvault_callbacks_total{outcome=\"foreign\"} 1\n",
            &wrong,
        ] {
            assert!(metrics.contains(series), "{series} {metrics}");
        }
    }

    async fn a_url_that_does_not_fit_its_fields_is_malformed(world: World) {
        let service = world.start().await;
        let id = world.record(1);
        let other_account = format!("AC{}", "9".repeat(32));
        for url in [
            format!("https://api.twilio.com/2010-04-01/Accounts/{other_account}/Recordings/{}", id.recording),
            format!("https://api.twilio.com/2010-04-01/Accounts/{ACCOUNT}/Recordings/RE{}", "9".repeat(32)),
            format!("https://evil.example/2010-04-01/Accounts/{ACCOUNT}/Recordings/{}", id.recording),
            format!("http://169.254.169.254/2010-04-01/Accounts/{ACCOUNT}/Recordings/{}", id.recording),
        ] {
            let answer = service.send(&world.callback(id.recording).with("RecordingUrl", &url)).await;
            assert_eq!(answer.status(), StatusCode::BAD_REQUEST, "{url}");
            assert_eq!(answer.json::<Value>().await.unwrap()["code"], "invalid_request");
        }
        let answer = service.send(&world.callback(id.recording).without("RecordingSid")).await;
        assert_eq!(answer.status(), StatusCode::BAD_REQUEST);
        is_unknown(&service, id.recording).await;
    }

    async fn bodies_have_their_limits(world: World) {
        let service = world.start().await;
        let id = world.record(1);
        let endless = world.callback(id.recording).with("Padding", &"x".repeat(100_000));
        let answer = service.send(&endless).await;
        assert_eq!(answer.status(), StatusCode::PAYLOAD_TOO_LARGE);
        assert_eq!(answer.json::<Value>().await.unwrap()["code"], "payload_too_large");
        let url = format!("{}/webhooks/twilio/recording", service.url);
        let answer = world.http.post(&url).header("content-type", "text/xml").body("<x/>").send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::UNSUPPORTED_MEDIA_TYPE);
        assert_eq!(world.http.put(&url).send().await.unwrap().status(), StatusCode::METHOD_NOT_ALLOWED);
        is_unknown(&service, id.recording).await;
    }

    async fn get_and_json_say_the_same_as_a_form(world: World) {
        let service = world.start().await;
        let token = AUTH_TOKEN.into();
        let by_get = world.record(1);
        let url = format!("{}/webhooks/twilio/recording?note=it's&{}", service.url, world.callback(by_get.recording).form());
        // reqwest's URL type would write %27: this is what the wire carries.
        let signed = reqwest::Url::parse(&url).unwrap().to_string();
        let signature = signature::sign(&token, &signed, Signed::UrlAlone);
        let answer = world.http.get(&url).header("x-twilio-signature", signature).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::NO_CONTENT);

        let by_json = world.record(2);
        let fields: serde_json::Map<String, Value> =
            world.callback(by_json.recording).fields.into_iter().map(|(name, value)| (name, value.into())).collect();
        let body = serde_json::to_vec(&fields).unwrap();
        let digest = callvault::domain::digest::Digest::of(&body);
        let url = format!("{}/webhooks/twilio/recording?bodySHA256={digest}", service.url);
        let signature = signature::sign(&token, &url, Signed::UrlAlone);
        let request = world.http.post(&url).header("content-type", "application/json");
        let answer = request.header("x-twilio-signature", signature).body(body).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::NO_CONTENT);

        service.recording_in(by_get.recording, "stored").await;
        service.recording_in(by_json.recording, "stored").await;
    }

    async fn a_public_url_behind_a_proxy_is_what_is_signed(world: World) {
        world.set("CALLVAULT_PUBLIC_URL", "https://calls.example.com/vault");
        let service = world.start().await;
        let id = world.record(1);
        let callback = world.callback(id.recording);
        let public = "https://calls.example.com/vault/webhooks/twilio/recording";
        let arrives_at = format!("{}/webhooks/twilio/recording", service.url);
        for signed_for in [public.to_owned(), public.replace(".com", ".com:443")] {
            let request = world.http.post(&arrives_at).header("content-type", "application/x-www-form-urlencoded");
            let request = request.header("x-twilio-signature", callback.signature(&signed_for)).body(callback.form());
            assert_eq!(request.send().await.unwrap().status(), StatusCode::NO_CONTENT, "{signed_for}");
        }
        assert_eq!(service.send(&callback).await.status(), StatusCode::FORBIDDEN, "signed for where it arrives");
    }

    async fn durations_that_twilio_does_not_know_do_no_harm(world: World) {
        let service = world.start().await;
        for (number, duration) in (1..).zip([Some("-1"), Some(""), None]) {
            let id = world.record(number);
            let callback = world.callback(id.recording);
            let callback = match duration {
                Some(duration) => callback.with("RecordingDuration", duration),
                None => callback.without("RecordingDuration"),
            };
            assert_eq!(service.send(&callback).await.status(), StatusCode::NO_CONTENT);
            let shown = service.recording_in(id.recording, "stored").await;
            assert_eq!(shown["duration_seconds"], Value::Null);
        }
    }

    async fn each_status_leads_where_it_should(world: World) {
        let service = world.start().await;
        let ids: Vec<_> = (1..=4).map(|number| world.record(number)).collect();
        let say = async |at: usize, status: &str| {
            let callback = world.simulator.callback(ids[at].recording, status).unwrap();
            assert_eq!(service.send(&callback.with("ErrorCode", "16101")).await.status(), StatusCode::NO_CONTENT);
        };
        say(0, "in-progress").await;
        assert_eq!(service.recording_in(ids[0].recording, "announced").await["attempts"], 0);
        say(0, "completed").await;
        service.recording_in(ids[0].recording, "stored").await;

        say(1, "absent").await;
        service.recording_in(ids[1].recording, "absent").await;
        let (status, problem) = service.json(&format!("/v1/calls/{}/audio", call_sid(2))).await;
        assert_eq!((status, &problem["code"]), (StatusCode::NOT_FOUND, &"recording_absent".into()));

        say(2, "failed").await;
        let failed = service.recording_in(ids[2].recording, "failed").await;
        assert_eq!(failed["last_error"]["code"], "twilio_failed");
        let (status, problem) = service.json(&format!("/v1/calls/{}/link", call_sid(3))).await;
        assert_eq!((status, &problem["code"]), (StatusCode::FAILED_DEPENDENCY, &"recording_failed".into()));

        say(3, "reticulating").await;
        let announced = service.recording_in(ids[3].recording, "announced").await;
        assert_eq!(announced["history"][1]["detail"]["status"], "reticulating");

        say(0, "absent").await;
        say(0, "in-progress").await;
        assert_eq!(service.recording_in(ids[0].recording, "stored").await["state"], "stored");
    }

    async fn a_first_completed_revives_what_was_given_up(world: World) {
        let service = world.start().await;
        let id = world.record(1);
        service.deliver(&world.simulator.callback(id.recording, "absent").unwrap()).await;
        service.recording_in(id.recording, "absent").await;
        service.deliver(&world.callback(id.recording)).await;
        service.recording_in(id.recording, "stored").await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_callback_while_the_catalog_is_away_is_503_within_5_s() {
    let postgres = Postgres::start();
    let mut world = World::new(Parts::Servers).await;
    world.set("CALLVAULT_DATABASE_URL", postgres.new_database().await);
    let service = world.start().await;
    let id = world.record(1);
    postgres.stop();

    let began = std::time::Instant::now();
    let answer = service.send(&world.callback(id.recording)).await;
    assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(began.elapsed() < std::time::Duration::from_secs(5), "{:?}", began.elapsed());
    assert_eq!(answer.json::<Value>().await.unwrap()["code"], "unavailable");
    eventually("the service says that it is degraded", async || {
        let answer = world.http.get(format!("{}/readyz", service.url)).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
        let body: Value = answer.json().await.unwrap();
        let problems = body["problems"].as_array().unwrap();
        let told = problems.iter().any(|problem| problem["code"] == "catalog_unreachable");
        (body["status"] == "degraded" && told).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_that_never_reached_its_catalog_is_not_ready_and_takes_nothing() {
    let mut world = World::new(Parts::Servers).await;
    world.set("CALLVAULT_DATABASE_URL", format!("postgres://nobody@127.0.0.1:{}/none", servers::free_port()));
    let service = world.start_unready(servers::free_port(), debug_binary());
    let answer =
        eventually("the port is open", async || world.http.get(format!("{}/readyz", service.url)).send().await.ok())
            .await;
    assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(world.http.get(format!("{}/healthz", service.url)).send().await.unwrap().status(), StatusCode::OK);
    let id = world.record(1);
    assert_eq!(service.send(&world.callback(id.recording)).await.status(), StatusCode::SERVICE_UNAVAILABLE);
}
