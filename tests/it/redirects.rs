//! Where Twilio's redirects may lead, and what goes with them.

use callvault::twilio::simulator::Fault;

use crate::support::eventually;
use crate::support::servers::free_port;
use crate::support::world::{Parts, World, recording_id};

on_all_parts! {
    async fn another_host_gets_no_credentials(world: World) {
        let service = world.start().await;
        let id = world.record(1);
        world.simulator.script(id.recording, [Fault::RedirectToMediaHost(3)]);
        service.deliver(&world.callback(id.recording)).await;
        service.recording_in(id.recording, "stored").await;
        let seen = world.simulator.seen();
        let (at_media_host, at_api): (Vec<_>, Vec<_>) = seen.iter().partition(|seen| seen.at_media_host);
        assert_eq!(at_media_host.len(), 3, "{seen:?}");
        assert!(at_media_host.iter().all(|seen| !seen.with_credentials), "{seen:?}");
        assert!(at_api.iter().all(|seen| seen.with_credentials), "{seen:?}");
    }

    async fn credentials_do_not_come_back_after_a_detour(world: World) {
        let service = world.start().await;
        let id = world.record(1);
        // To the media host, and from there back to the API.
        let back = format!("{}/back-to-api/{}", world.simulator.media_host(), id.recording);
        world.simulator.script(id.recording, [Fault::Redirect(back)]);
        service.deliver(&world.callback(id.recording)).await;
        eventually("the API was asked a second time", async || {
            let seen = world.simulator.seen();
            let at_api: Vec<_> = seen.iter().filter(|seen| !seen.at_media_host).collect();
            (at_api.len() >= 2).then(|| assert!(!at_api[1].with_credentials, "{seen:?}"))
        })
        .await;
    }

    async fn a_redirect_to_where_nobody_should_go_is_refused(world: World) {
        let service = world.start().await;
        let path = "/x.mp3";
        let targets = [
            format!("http://media.twiliocdn.com{path}"),
            format!("http://10.0.0.1{path}"),
            format!("http://localhost:1{path}"),
            format!("http://[::ffff:127.0.0.1]:1{path}"),
            format!("https://127.0.0.1{path}"),
            format!("https://2130706433{path}"),
            format!("https://0x7f.1{path}"),
            format!("https://10.0.0.1{path}"),
            format!("https://169.254.169.254{path}"),
            format!("https://[::1]{path}"),
            format!("https://[::ffff:10.0.0.1]{path}"),
            format!("https://[64:ff9b::a00:1]{path}"),
            format!("https://[fd00::1]{path}"),
            format!("https://localhost{path}"),
            format!("https://user:pass@media.twiliocdn.com{path}"),
            "ftp://media.twiliocdn.com/x".to_owned(),
            "http://".to_owned(),
        ];
        for (number, target) in (1..).zip(&targets) {
            let id = world.record(number);
            world.simulator.always(id.recording, Some(Fault::Redirect(target.clone())));
            service.deliver(&world.callback(id.recording)).await;
        }
        let sixth = world.record(100);
        world.simulator.always(sixth.recording, Some(Fault::RedirectToMediaHost(6)));
        service.deliver(&world.callback(sixth.recording)).await;
        let all = (1..=targets.len() as u32).zip(targets.iter().map(String::as_str)).chain([(100, "a sixth redirect")]);
        for (number, target) in all {
            let error = eventually("the attempt has failed", async || {
                let (_, shown) = service.json(&format!("/v1/recordings/{}", recording_id(number).recording)).await;
                assert_ne!(shown["state"], "stored", "{target}");
                shown["last_error"].is_object().then(|| shown["last_error"].clone())
            })
            .await;
            assert_eq!(error["code"], "refused_redirect", "{target}: {error}");
        }
    }
}

on_all_parts! {
    async fn a_proxy_is_the_way_to_twilio(world: World) {
        // Nobody listens at the origin: only a proxy can reach it. The simulator
        // answers for any host, as a proxy in front of Twilio would.
        world.set("CALLVAULT_TWILIO_PROXY", world.simulator.origin());
        world.set("CALLVAULT_TWILIO_ORIGIN", format!("http://127.0.0.1:{}", free_port()));
        let service = world.start().await;
        let id = world.record(1);
        service.deliver(&world.callback(id.recording)).await;
        service.recording_in(id.recording, "stored").await;
        assert_eq!(world.simulator.counts(id.recording).fetches, 1);
    }
}
