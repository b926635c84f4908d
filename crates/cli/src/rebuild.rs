//! `kontiki rebuild`: the last resort after a quorum was lost for good.

use std::{
    io::{self, IsTerminal as _},
    path::PathBuf,
};

use clap::Args;
use kontiki_server::Rebuild;

use crate::failure::{Failure, with_causes};

const HELP: &str = "\
For a cluster of which so many servers are gone for good that the rest is no majority: it can
never decide anything again. This makes the server in --data-dir a cluster of its own, with what
it has. Where any of the others can be brought back, even slowly, bring it back instead.

What may be lost or invented:
  - writes that the others acknowledged and this server never received are lost
  - writes that this server received and nobody acknowledged become part of the data
So run it on the survivor with the longest log (the highest raftIndex of `kontiki status`, or
kontiki_log_last_index of /metrics), on that one only, and while it is stopped. The others join
afterwards as new members, with empty data directories (kontiki members add).

Example:
  kontiki rebuild --data-dir /var/lib/kontiki
  kontiki serve --name n1 --data-dir /var/lib/kontiki …    as before";

/// What has to be typed.
const CONFIRMATION: &str = "lose data";

#[derive(Args, Debug)]
#[command(after_help = HELP)]
pub(crate) struct RebuildArgs {
    /// The --data-dir of the server that is to go on alone
    #[arg(long, value_name = "DIR")]
    data_dir: PathBuf,

    /// Where servers that join will find it; by default where they found it before
    #[arg(long, value_name = "URL")]
    peer_url: Option<String>,

    /// Go on though entries of its log are damaged, and so lost
    #[arg(long)]
    accept_damaged_log: bool,

    /// Do not ask
    #[arg(long)]
    i_accept_data_loss: bool,
}

pub(crate) fn run(args: RebuildArgs, stdout: &mut dyn io::Write) -> Result<(), Failure> {
    let mut rebuild = Rebuild::new(args.data_dir);
    rebuild.peer_url = args.peer_url;
    rebuild.accept_damage = args.accept_damaged_log;
    let told = |error| Failure::new(with_causes(&error));
    let survivor = rebuild.survivor().map_err(told)?;
    writeln!(
        stdout,
        "This is {survivor}.\nIt becomes a cluster of its own. Writes that the others have \
         acknowledged and it has not received\nARE LOST; writes that nobody has acknowledged may \
         appear. There is no way back."
    )?;
    if !args.i_accept_data_loss {
        confirm(stdout)?;
    }
    let rebuilt = rebuild.run().map_err(told)?;
    writeln!(
        stdout,
        "{rebuilt}\nStart it as before. The others join as new members, each with an empty data \
         directory:\n  kontiki members add NAME --peer-urls URL"
    )?;
    Ok(())
}

fn confirm(stdout: &mut dyn io::Write) -> Result<(), Failure> {
    if !io::stdin().is_terminal() {
        return Err(Failure::usage(
            "nobody is there to be asked: --i-accept-data-loss says that it may be lost",
        ));
    }
    write!(stdout, "Type `{CONFIRMATION}` to go on: ")?;
    stdout.flush()?;
    let mut typed = String::new();
    io::stdin().read_line(&mut typed)?;
    if typed.trim() == CONFIRMATION { Ok(()) } else { Err(Failure::new("nothing was changed")) }
}
