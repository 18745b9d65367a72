//! callvault beside its peers, each measure a ratio of one interleaved run.
//!
//! `make bench` runs all; `cargo bench --bench side_by_side -- p1 p6` some. What a
//! peer needs is installed by `tests/install-tools.sh bench`; one that is not there
//! is named. A measure that misses its goal says so and fails nothing: machines
//! are noisy, and people judge.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a benchmark prints, may fail, and measures"
)]

mod callbacks;
mod cold;
mod cpu;
mod ingest;
mod large;
mod load;
mod peers;
mod presign;
mod redirect;
mod rounds;
mod rows;
#[path = "../../tests/support/mod.rs"]
mod support;

/// A number that the environment may say otherwise.
fn setting<T: std::str::FromStr>(name: &str, usual: T) -> T {
    std::env::var(name).ok().map_or(usual, |text| text.parse().unwrap_or_else(|_| panic!("{name} is not a number")))
}

/// Where a goal is shown that is a count, or a claim that a test makes.
const SHOWN_BY_TESTS: &str = "P5 (fetches) is shown by the test cluster::three_hundred_clients_on_three_nodes_cost_one_fetch, \
     P12 (store calls) by journey::a_hit_asks_neither_the_store_nor_twilio";

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let named: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with('-')).collect();
    let is_wanted = |id: &str| named.is_empty() || named.iter().any(|name| name.eq_ignore_ascii_case(id));
    if is_wanted("P1") || is_wanted("P2") {
        let asked = redirect::Asked::start().await;
        if is_wanted("P1") {
            redirect::beside_nginx(&asked).await;
        }
        if is_wanted("P2") {
            redirect::beside_applications(&asked).await;
        }
    }
    if is_wanted("P3") {
        presign::beside_others().await;
    }
    if is_wanted("P4") {
        cold::beside_caches().await;
    }
    if is_wanted("P6") {
        ingest::megabytes().await;
    }
    if is_wanted("P7") {
        ingest::minutes().await;
    }
    if is_wanted("P8") {
        large::gibibyte().await;
    }
    if is_wanted("P9") {
        large::content().await;
    }
    if is_wanted("P10") {
        callbacks::callbacks().await;
    }
    if is_wanted("P11") {
        callbacks::sizes().await;
    }
    println!("{SHOWN_BY_TESTS}");
}
