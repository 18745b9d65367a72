//! `callvault openapi`: the document of the API.

use crate::http;

/// Print the OpenAPI document of the API (JSON, OpenAPI 3.1).
///
/// The same that a service answers at /openapi.json; needs no settings.
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Args {}

/// Prints it.
#[expect(clippy::print_stdout, reason = "a command's result goes to stdout")]
pub async fn run() -> anyhow::Result<()> {
    println!("{}", http::openapi());
    Ok(())
}
