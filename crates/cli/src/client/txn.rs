//! txn: reads a transaction in etcdctl's text form and sends it.

use std::io::{self, BufRead as _, IsTerminal as _};

use clap::Args;

use super::{ANSWER_BYTES_MAX, ClientArgs, txn_text};
use crate::failure::Failure;

#[derive(Args, Debug)]
pub(crate) struct TxnArgs {
    /// Say which list is read next
    #[arg(short, long)]
    interactive: bool,
}

pub(super) async fn txn(
    args: &TxnArgs,
    client: &ClientArgs,
    stdout: &mut dyn io::Write,
) -> Result<(), Failure> {
    let is_prompting = args.interactive || io::stdin().is_terminal();
    let mut lines = io::stdin().lock().lines();
    let transaction = txn_text::read(|list| {
        let mut read = Vec::new();
        if is_prompting {
            writeln!(stdout, "{}:", list.prompt())?;
            stdout.flush()?;
        }
        loop {
            match lines.next() {
                None => return Err(Failure::input(list.ended_early())),
                Some(line) => {
                    let line = line.map_err(|error| Failure::input(format!("stdin: {error}")))?;
                    if line.is_empty() {
                        return Ok(read);
                    }
                    read.push(line);
                }
            }
        }
    })?;
    let mut kv = client.connect().await?.kv_client().max_decoding_message_size(ANSWER_BYTES_MAX);
    let answer = client.within_time(kv.txn(transaction)).await?;
    Ok(client.output(stdout).txn(&answer)?)
}
