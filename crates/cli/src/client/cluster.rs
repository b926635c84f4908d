//! status.

use std::io;

use clap::Args;
use etcd_client::StatusResponse;

use super::{ClientArgs, connect};
use crate::failure::Failure;

#[derive(Args, Debug)]
pub(crate) struct StatusArgs {
    /// Ask all members of the cluster, not only the given endpoints
    #[arg(long)]
    cluster: bool,
}

/// Asks every endpoint. One that cannot be reached is told of, and the others are shown.
pub(super) async fn status(
    args: &StatusArgs,
    client: &ClientArgs,
    stdout: &mut dyn io::Write,
) -> Result<(), Failure> {
    let endpoints =
        if args.cluster { member_urls(client).await? } else { client.endpoints.clone() };
    let mut rows = Vec::new();
    let mut failures = Vec::new();
    for endpoint in endpoints {
        match status_of(&endpoint, client).await {
            Ok(status) => rows.push((endpoint, status)),
            Err(failure) => failures.push(failure.to_string()),
        }
    }
    client.output(stdout).status(&rows)?;
    if failures.is_empty() { Ok(()) } else { Err(Failure::new(failures.join("\n       "))) }
}

async fn status_of(endpoint: &str, client: &ClientArgs) -> Result<StatusResponse, Failure> {
    let mut maintenance = connect(endpoint, client.dial_timeout).await?.maintenance_client();
    client
        .within_time(maintenance.status())
        .await
        .map_err(|failure| Failure::new(format!("{endpoint}: {failure}")))
}

async fn member_urls(client: &ClientArgs) -> Result<Vec<String>, Failure> {
    let mut cluster = client.connect().await?.cluster_client();
    let list = client.within_time(cluster.member_list()).await?;
    Ok(list.members().iter().flat_map(|member| member.client_urls().iter().cloned()).collect())
}
