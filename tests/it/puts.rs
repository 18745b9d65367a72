//! Recordings that applications name.

use callvault::twilio::simulator::SimulatedRecording;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::support::world::{ACCOUNT, Parts, World, call_sid, recording_id, started_at};

on_all_parts! {
    async fn every_spelling_that_applications_hold_is_taken(world: World) {
        let service = world.start().await;
        let spellings = [
            "https://api.twilio.com{}",
            "https://api.twilio.com{}.mp3",
            "https://api.twilio.com{}.wav",
            "https://api.twilio.com{}.json",
            "https://api.twilio.com{}.wav?RequestedChannels=2",
            "https://api.twilio.com{}?Download=false",
            "https://api.ie1.twilio.com{}.mp3",
            "https://api.dublin.ie1.twilio.com{}",
            "{}",
            "{}.mp3",
        ];
        for (number, spelling) in (1..).zip(spellings) {
            let id = world.record(number);
            let path = format!("/2010-04-01/Accounts/{ACCOUNT}/Recordings/{}", id.recording);
            let url = spelling.replace("{}", &path);
            let answer = service.put(call_sid(number), &url).await;
            assert_eq!(answer.status(), StatusCode::ACCEPTED, "{url}");
            let taken: Value = answer.json().await.unwrap();
            assert_eq!(taken["recording_sid"], id.recording.to_string());
            assert!(taken["source_url"].as_str().unwrap().ends_with(&path), "{taken}");
            service.recording_in(id.recording, "stored").await;
            assert_eq!(service.put(call_sid(number), &url).await.status(), StatusCode::OK, "{url} again");
            assert_eq!(world.simulator.counts(id.recording).fetches, 1);
        }
        let id = world.record(100);
        let url = format!("{}/2010-04-01/Accounts/{ACCOUNT}/Recordings/{}", world.simulator.origin(), id.recording);
        assert_eq!(service.put(call_sid(100), &url).await.status(), StatusCode::ACCEPTED);
        assert_eq!(service.recording_in(id.recording, "stored").await["source_url"], url);
    }

    async fn other_hosts_ports_schemes_and_accounts_are_refused(world: World) {
        let service = world.start().await;
        let id = world.record(1);
        let path = format!("/2010-04-01/Accounts/{ACCOUNT}/Recordings/{}", id.recording);
        let other = path.replace(ACCOUNT, &format!("AC{}", "9".repeat(32)));
        for url in [
            format!("https://evil.example{path}"),
            format!("https://api.twilio.com.evil.example{path}"),
            format!("https://api.twilio.com:444{path}"),
            format!("http://api.twilio.com{path}"),
            format!("http://127.0.0.1:1{path}"),
            format!("https://user:pass@api.twilio.com{path}"),
            format!("https://api.twilio.com{other}"),
            other,
            "https://api.twilio.com/".to_owned(),
            String::new(),
        ] {
            let answer = service.put(call_sid(1), &url).await;
            assert_eq!(answer.status(), StatusCode::BAD_REQUEST, "{url}");
            assert_eq!(answer.json::<Value>().await.unwrap()["code"], "invalid_request", "{url}");
        }
        let put = |body: &'static str, content_type: &str| {
            let request = service.request(Method::PUT, &format!("/v1/calls/{}/recording", call_sid(1)));
            request.header("content-type", content_type).body(body).send()
        };
        assert_eq!(put("{}", "application/json").await.unwrap().status(), StatusCode::BAD_REQUEST);
        assert_eq!(put("x", "application/json").await.unwrap().status(), StatusCode::BAD_REQUEST);
        assert_eq!(put("{}", "text/plain").await.unwrap().status(), StatusCode::UNSUPPORTED_MEDIA_TYPE);
        let (status, _) = service.json(&format!("/v1/recordings/{}", id.recording)).await;
        assert_eq!(status, StatusCode::NOT_FOUND);
        assert_eq!(world.simulator.seen(), []);
    }

    async fn twilios_own_call_is_read_before_the_key_is_made(world: World) {
        let service = world.start().await;
        let id = recording_id(1);
        world.simulator.add(SimulatedRecording::speech(id, call_sid(1), started_at()));
        let child = call_sid(2);
        let url = format!("/2010-04-01/Accounts/{ACCOUNT}/Recordings/{}", id.recording);
        assert_eq!(service.put(child, &url).await.status(), StatusCode::ACCEPTED);
        let shown = service.recording_in(id.recording, "stored").await;
        assert_eq!(shown["call_sid"], call_sid(1).to_string());
        assert!(shown["key"].as_str().unwrap().starts_with(&format!("{}/{}/", call_sid(1), id.recording)), "{shown}");
        assert_eq!(shown["recorded_at"], "2026-11-23T09:30:00Z");
        assert_eq!(world.simulator.counts(id.recording).descriptions, 1);
        for name in [call_sid(1), child] {
            let (status, call) = service.json(&format!("/v1/calls/{name}")).await;
            assert_eq!(status, StatusCode::OK, "{name}");
            assert_eq!(call["recording_sid"], id.recording.to_string());
            let (status, _) = service.json(&format!("/v1/calls/{name}/link")).await;
            assert_eq!(status, StatusCode::OK, "{name}");
        }
    }

    async fn a_call_answers_for_what_was_last_put_for_it(world: World) {
        let service = world.start().await;
        for number in 1..=3 {
            let id = recording_id(number);
            let at = started_at() + std::time::Duration::from_secs(u64::from(number));
            world.simulator.add(SimulatedRecording::speech(id, call_sid(1), at));
            service.deliver(&world.callback(id.recording)).await;
            service.recording_in(id.recording, "stored").await;
        }
        let answers = async |number: u32| {
            let (_, call) = service.json(&format!("/v1/calls/{}", call_sid(1))).await;
            let (_, link) = service.json(&format!("/v1/calls/{}/link", call_sid(1))).await;
            let expected = json!(recording_id(number).recording);
            assert_eq!((&call["recording_sid"], &link["recording_sid"]), (&expected, &expected));
        };
        answers(3).await;
        for number in [1, 2, 1] {
            let url = format!("/2010-04-01/Accounts/{ACCOUNT}/Recordings/{}", recording_id(number).recording);
            assert_eq!(service.put(call_sid(1), &url).await.status(), StatusCode::OK);
            answers(number).await;
        }
    }

    async fn a_call_can_be_asked_for_before_it_is_stored(world: World) {
        let service = world.start().await;
        let id = world.record(1);
        let url = format!("/2010-04-01/Accounts/{ACCOUNT}/Recordings/{}", id.recording);
        assert_eq!(service.put(call_sid(1), &url).await.status(), StatusCode::ACCEPTED);
        let answer = service.get(&format!("/v1/calls/{}/audio?wait=30", call_sid(1))).await;
        assert_eq!(answer.status(), StatusCode::TEMPORARY_REDIRECT);
    }
}
