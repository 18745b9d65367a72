//! callvault beside its peers, each measure a ratio of one interleaved run.
//!
//! `make bench` runs all; `cargo bench --bench side_by_side -- p1 p6` some. What a
//! peer needs is installed by `tests/install-tools.sh bench`; one that is not there
//! is named. A measure that misses its goal says so and fails nothing: machines
//! are noisy, and people judge.

#![allow(clippy::print_stdout, clippy::unwrap_used, reason = "a benchmark prints, and may fail")]

mod cpu;
mod load;
mod redirect;
mod rounds;
mod rows;
#[path = "../../tests/support/mod.rs"]
mod support;

/// A number that the environment may say otherwise.
fn setting<T: std::str::FromStr>(name: &str, usual: T) -> T {
    std::env::var(name).ok().map_or(usual, |text| text.parse().unwrap_or_else(|_| panic!("{name} is not a number")))
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let named: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with('-')).collect();
    let is_wanted = |ids: &[&str]| named.is_empty() || named.iter().any(|name| ids.contains(&name.to_lowercase().as_str()));
    if is_wanted(&["p1", "p2"]) {
        let asked = redirect::Asked::start().await;
        if is_wanted(&["p1"]) {
            redirect::beside_nginx(&asked).await;
        }
    }
}
