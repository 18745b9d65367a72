//! Audio by its content.

use callvault::domain::digest::Digest;
use callvault::twilio::simulator::speech_mp3;
use reqwest::{Method, StatusCode};
use serde_json::Value;

use crate::support::world::{Parts, World};

on_all_parts! {
    async fn bytes_are_found_by_their_digest_whichever_recording_has_them(world: World) {
        let service = world.start().await;
        let digest = Digest::of(&speech_mp3());
        let path = format!("/v1/blobs/sha256:{digest}");
        assert_eq!(service.get(&path).await.status(), StatusCode::NOT_FOUND);
        let ids = [world.record(1), world.record(2)];
        for id in ids {
            service.deliver(&world.callback(id.recording)).await;
            service.recording_in(id.recording, "stored").await;
        }
        let (played, headers) = service.play(&path).await;
        assert_eq!(played, speech_mp3());
        assert_eq!(headers["content-type"], "audio/mpeg");
        assert_eq!(service.get(&path.replace(':', "%3A")).await.status(), StatusCode::TEMPORARY_REDIRECT);
        let head = service.request(Method::HEAD, &path).send().await.unwrap();
        let link = head.headers()["location"].to_str().unwrap();
        let head = world.http.head(link).send().await.unwrap();
        assert_eq!(head.headers()["content-length"], speech_mp3().len().to_string());
        let links = [service.get(&path).await, service.get(&path).await];
        let [one, other] = links.map(|answer| answer.headers()["location"].clone());
        assert_eq!(one, other);
    }

    async fn what_is_no_digest_or_not_known_is_not_found(world: World) {
        let service = world.start().await;
        let hex = Digest::of(b"never stored").to_string();
        let names = [
            format!("sha256:{hex}"), format!("sha256:{}", hex.to_uppercase()), hex.clone(),
            format!("sha512:{hex}"), format!("sha256:{}", &hex[1..]), "sha256:".to_owned(), "%ff".to_owned(),
        ];
        for name in names {
            let answer = service.get(&format!("/v1/blobs/{name}")).await;
            assert_eq!(answer.status(), StatusCode::NOT_FOUND, "{name}");
            assert_eq!(answer.json::<Value>().await.unwrap()["code"], "not_found", "{name}");
        }
    }
}
