//! What a disaster happens to, and what is looked at after it.

use std::path::Path;

use callvault::domain::recording::RecordingId;
use callvault::twilio::simulator::speech_mp3;
use reqwest::{Method, StatusCode};
use sqlx::{Connection, Executor};

use crate::support::eventually;
use crate::support::pages::Terminal;
use crate::support::servers::{Postgres, free_port};
use crate::support::world::{ADMIN_KEY, Parts, Service, World, call_sid, debug_binary, recording_id};

/// A world before a disaster, and the terminal of whoever has to deal with it.
pub struct Scene {
    /// Its parts.
    pub world: World,
    /// In the folder of the services, with their settings.
    pub terminal: Terminal,
    port: u16,
    /// Of those whose database can be lost: it is the world's alone.
    pub server: Option<Postgres>,
}

impl Scene {
    pub async fn new(parts: Parts) -> Self {
        let mut world = World::new(parts).await;
        let port = free_port();
        let url = format!("http://127.0.0.1:{port}");
        world.set("CALLVAULT_PUBLIC_URL", &url);
        let server = (parts == Parts::Servers).then(Postgres::start);
        let mut administrators = String::new();
        if let Some(server) = &server {
            administrators = format!("postgres://postgres@127.0.0.1:{}/postgres", server.port);
            administrator(&administrators, "CREATE ROLE callvault LOGIN").await;
            administrator(&administrators, "CREATE DATABASE callvault OWNER callvault").await;
            world.set("CALLVAULT_DATABASE_URL", format!("postgres://callvault@127.0.0.1:{}/callvault", server.port));
        }
        let mut terminal = Terminal::new(&world.folder(), &world.settings);
        terminal.set("ADMIN_DATABASE_URL", administrators);
        terminal.set("CALLVAULT_URL", &url);
        terminal.set("CALLVAULT_API_KEY", ADMIN_KEY);
        terminal.set("CALLVAULT_LISTEN", format!("127.0.0.1:{port}"));
        Self { world, terminal, port, server }
    }

    pub async fn start(&self) -> Service {
        self.world.start_on(self.port, debug_binary()).await
    }

    /// Recordings of which Twilio calls back, until they are stored.
    pub async fn store(&self, service: &Service, numbers: impl IntoIterator<Item = u32>) {
        for number in numbers {
            let id = self.world.record(number);
            self.announce(service, id).await;
            service.recording_in(id.recording, "stored").await;
        }
    }

    /// Twilio calls back to a node, by the name that all of them have.
    pub async fn announce(&self, service: &Service, id: RecordingId) {
        let at = |base: &str| format!("{base}/webhooks/twilio/recording");
        let (signed_for, send_to) = (at(self.terminal.var("CALLVAULT_URL")), at(&service.url));
        let callback = self.world.callback(id.recording);
        let answer = callback.send_signed_for(&self.world.http, &signed_for, &send_to).await.expect("it answers");
        assert_eq!(answer.status(), StatusCode::NO_CONTENT);
    }

    pub async fn lose_the_catalog(&self) {
        match &self.server {
            Some(server) => {
                let administrators = format!("postgres://postgres@127.0.0.1:{}/postgres", server.port);
                administrator(&administrators, "DROP DATABASE callvault WITH (FORCE)").await;
            }
            None => remove_catalog(&self.world.folder()),
        }
    }

    pub fn fetches(&self, numbers: impl IntoIterator<Item = u32>) -> Vec<u64> {
        numbers.into_iter().map(|number| self.world.simulator.counts(recording_id(number).recording).fetches).collect()
    }
}

async fn administrator(url: &str, statement: &'static str) {
    let mut connection = sqlx::PgConnection::connect(url).await.expect("the server is up");
    connection.execute(statement).await.unwrap_or_else(|error| panic!("{statement}: {error}"));
}

fn remove_catalog(folder: &Path) {
    std::fs::remove_file(folder.join("callvault.db")).expect("the catalog is there");
    for end in ["-wal", "-shm"] {
        let _ = std::fs::remove_file(folder.join(format!("callvault.db{end}")));
    }
}

pub async fn erase(service: &Service, number: u32) {
    let path = format!("/v1/recordings/{}", recording_id(number).recording);
    eventually("it is erased", async || {
        let answer = service.request(Method::DELETE, &path).send().await.expect("the service answers");
        (answer.status() == StatusCode::NO_CONTENT).then_some(())
    })
    .await;
}

pub async fn hold(service: &Service, number: u32) {
    let path = format!("/v1/recordings/{}/hold", recording_id(number).recording);
    assert_eq!(service.request(Method::PUT, &path).send().await.unwrap().status(), StatusCode::OK);
}

pub async fn plays(service: &Service, numbers: impl IntoIterator<Item = u32>) {
    for number in numbers {
        let (bytes, _) = service.play(&format!("/v1/calls/{}/audio?wait=30", call_sid(number))).await;
        assert_eq!(bytes, speech_mp3(), "{number}");
    }
}

/// It is not played, and news of it changes nothing.
pub async fn stays_erased(scene: &Scene, service: &Service, number: u32) {
    scene.announce(service, recording_id(number)).await;
    service.recording_in(recording_id(number).recording, "erased").await;
    let answer = service.get(&format!("/v1/calls/{}/audio", call_sid(number))).await;
    assert_eq!(answer.status(), StatusCode::GONE);
}

pub async fn stays_held(service: &Service, number: u32) {
    let path = format!("/v1/recordings/{}", recording_id(number).recording);
    assert_eq!(service.json(&path).await.1["hold"], true);
    let refused = service.request(Method::DELETE, &path).send().await.unwrap();
    assert_eq!(refused.status(), StatusCode::CONFLICT);
}

/// The cursor behind all that is in the feed by now.
pub async fn cursor(service: &Service) -> String {
    let (_, page) = service.json("/v1/events?after=latest&wait=0").await;
    page["next"].as_str().expect("a cursor").to_owned()
}

/// The recordings of which a reader with that cursor is told that they are stored.
pub async fn told(service: &Service, after: &str) -> Vec<String> {
    let path = format!("/v1/events?after={after}&type=recording.stored&limit=100&wait=0");
    let (_, page) = service.json(&path).await;
    let events = page["events"].as_array().expect("events");
    events.iter().map(|event| event["recording"]["recording_sid"].as_str().expect("a SID").to_owned()).collect()
}

pub fn sids(numbers: impl IntoIterator<Item = u32>) -> Vec<String> {
    numbers.into_iter().map(|number| recording_id(number).recording.to_string()).collect()
}
