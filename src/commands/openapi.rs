//! `callvault openapi`: the document of the API.

use super::print_line;
use crate::http;

/// Print the OpenAPI document of the API (JSON, OpenAPI 3.1).
///
/// The same that a service answers at /openapi.json; needs no settings.
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Args {}

/// Prints it.
pub async fn run() -> anyhow::Result<()> {
    print_line(http::openapi());
    Ok(())
}
