//! alarm.

use std::io;

use clap::{Args, Subcommand};
use etcd_client::{AlarmAction, AlarmOptions, AlarmType};

use super::ClientArgs;
use crate::failure::Failure;

const EXAMPLES: &str = "\
An alarm says what is wrong with a member, and ends with it: NOSPACE while a disk is full, CORRUPT
while a damaged store is being fetched anew. One that is disarmed while it is true comes back.

Examples:
  kontiki alarm list
  kontiki alarm disarm     forget those of members that will not come back";

#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(crate) struct AlarmArgs {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
#[command(disable_help_subcommand = true)]
enum Action {
    /// List the alarms of all members
    List,
    /// Forget all alarms, and list which they were
    Disarm,
}

pub(super) async fn alarm(
    args: &AlarmArgs,
    client: &ClientArgs,
    stdout: &mut dyn io::Write,
) -> Result<(), Failure> {
    let mut etcd = client.connect().await?;
    let all = client.within_time(etcd.alarm(AlarmAction::Get, AlarmType::None, None)).await?;
    match args.action {
        Action::List => client.output(stdout).alarms(&all)?,
        Action::Disarm => {
            for alarm in all.alarms() {
                let mut options = AlarmOptions::new();
                options.with_member(alarm.member_id());
                let disarm = etcd.alarm(AlarmAction::Deactivate, alarm.alarm(), Some(options));
                let disarmed = client.within_time(disarm).await?;
                client.output(stdout).alarms(&disarmed)?;
            }
        }
    }
    Ok(())
}
