//! The receiving side of a transfer: says what it wants, writes what comes, asks again for what
//! came damaged, and tells the node when the whole is durable. Nothing else tells the leader
//! that this follower has moved on but the follower's own reply (pitfall M11).

use std::{collections::VecDeque, future::pending, io};

use bytes::BytesMut;
use kontiki_raft::{NodeId, SnapshotMeta};
use tokio::{
    io::AsyncReadExt,
    net::{
        TcpStream,
        tcp::{ReadHalf, WriteHalf},
    },
    task::JoinHandle,
    time::{Instant, MissedTickBehavior, interval, timeout},
};

use super::{
    Broken, DAMAGED_MAX, Turn, WINDOW, blocking, read_frame,
    words::{ReceiverWord, Refused, SenderWord},
    write,
};
use crate::{
    Bytes,
    error::with_causes,
    tcp::{Shared, frame::FrameError},
    transport::{Reception, SnapshotSink},
};

/// Receives one snapshot over a connection that was let in, to the end or until it breaks.
pub(in crate::tcp) async fn receive(
    mut stream: TcpStream,
    mut received: BytesMut,
    from: NodeId,
    shared: &Shared,
) {
    let (mut reader, mut writer) = stream.split();
    let idle = shared.times.idle;
    let word = match converse((&mut reader, &mut writer), &mut received, from, shared).await {
        Ok(meta) => {
            tracing::info!(peer = %from, last = %meta.last, "a snapshot is received");
            shared.inbox.snapshot_received(from, meta);
            ReceiverWord::Done
        }
        Err(error) => {
            tracing::info!(peer = %from, error = with_causes(&error), "a snapshot is not received");
            let Some(why) = refusal(&error) else { return };
            ReceiverWord::Refused(why)
        }
    };
    if write(&mut writer, &word.frame(), idle).await.is_ok() {
        // To close while there are bytes to be read would take the last word back.
        let drain = async { while reader.read(&mut [0; 4096]).await.is_ok_and(|n| n != 0) {} };
        drop(timeout(idle, drain).await);
    }
}

/// What to tell the sender, if it is worth telling.
fn refusal(error: &Broken) -> Option<Refused> {
    match error {
        Broken::Refused(why) => Some(*why),
        Broken::Sink(error) if error.kind() == io::ErrorKind::InvalidData => Some(Refused::Damaged),
        Broken::Sink(_) => Some(Refused::Disk),
        Broken::Replaced => Some(Refused::Stale),
        _ => None,
    }
}

type Halves<'a, 'b> = (&'a mut ReadHalf<'b>, &'a mut WriteHalf<'b>);

/// Returns when the snapshot is verified and durable, or was before.
async fn converse(
    (reader, writer): Halves<'_, '_>,
    received: &mut BytesMut,
    from: NodeId,
    shared: &Shared,
) -> Result<SnapshotMeta, Broken> {
    let first = SenderWord::decode(read_frame(reader, received, shared.times.idle).await?)?;
    let SenderWord::Offer { session, term, offer } = first else {
        return Err(Broken::Protocol("a chunk of a snapshot that was not offered"));
    };
    let (meta, chunk_count) = (offer.meta.clone(), offer.chunk_count);
    tracing::info!(peer = %from, last = %meta.last, %term, ?session, "a snapshot is offered");
    let store = shared.local.snapshots.clone().ok_or(Broken::Refused(Refused::Unsupported))?;
    let mut place = shared.desk.enter(from, term).map_err(Broken::Refused)?;
    let transfer = async {
        let turn = shared.desk.turn().await;
        let opened = blocking(move || match store.receive(&offer) {
            Ok(Reception::Here) => Ok(None),
            Ok(Reception::Wanted(sink)) => Ok(Some(File { sink, _turn: turn })),
            Err(error) => Err(error),
        });
        match opened.await.map_err(io::Error::other).flatten().map_err(Broken::Sink)? {
            None => Ok(()),
            Some(file) => {
                Inflow::new(file, chunk_count).run(reader, writer, received, shared).await
            }
        }
    };
    tokio::select! {
        biased;
        _ = &mut place.replaced => return Err(Broken::Replaced),
        end = transfer => end?,
    }
    Ok(meta)
}

/// The snapshot that is written. Whoever has this may touch its files.
#[derive(Debug)]
struct File {
    sink: Box<dyn SnapshotSink>,
    _turn: Turn,
}

/// What is under way to the disk.
enum Writing {
    /// One chunk. Gives the file back.
    Chunk(JoinHandle<(File, io::Result<()>)>),
    /// The end of it.
    Finish(JoinHandle<io::Result<()>>),
}

/// What happened to it.
enum Written {
    Chunk(File, io::Result<()>),
    Finished,
}

/// A transfer that is going on.
struct Inflow {
    /// Away while something is under way to the disk.
    file: Option<File>,
    writing: Option<Writing>,
    /// Received and not written yet: at most [`WINDOW`].
    queue: VecDeque<Bytes>,
    chunk_count: u64,
    /// All before this is written.
    next: u64,
    /// All before this is received.
    expected: u64,
    /// What the sender may send: all before this.
    upto: u64,
    /// A chunk was asked for again, and until it comes what comes is of no use.
    is_skipping: bool,
    /// How often the chunk that is next was damaged.
    damaged_count: u32,
}

impl Inflow {
    fn new(file: File, chunk_count: u64) -> Self {
        let next = file.sink.next_chunk().min(chunk_count);
        Self {
            file: Some(file),
            writing: None,
            queue: VecDeque::new(),
            chunk_count,
            next,
            expected: next,
            upto: chunk_count.min(next.saturating_add(WINDOW)),
            is_skipping: false,
            damaged_count: 0,
        }
    }

    /// Runs until all is durable.
    async fn run(
        mut self,
        reader: &mut ReadHalf<'_>,
        writer: &mut WriteHalf<'_>,
        received: &mut BytesMut,
        shared: &Shared,
    ) -> Result<(), Broken> {
        let idle = shared.times.idle;
        let mut heard_at = Instant::now();
        let mut alive = interval(shared.times.alive);
        alive.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            self.maybe_write();
            if self.writing.is_some() {
                heard_at = Instant::now(); // it is we who keep the sender waiting
            }
            let answer = tokio::select! {
                biased;
                written = finish(&mut self.writing) => match written? {
                    Written::Finished => return Ok(()),
                    Written::Chunk(file, result) => self.on_written(file, result)?,
                },
                frame = read_frame(reader, received, idle) => {
                    heard_at = Instant::now();
                    self.on_frame(frame)?
                }
                // The first of these is due at once: it says where to begin.
                _ = alive.tick() => {
                    // The read begins anew after each of these, and its patience with it.
                    if idle <= heard_at.elapsed() {
                        return Err(Broken::Silent(idle));
                    }
                    Some(self.want())
                }
            };
            if let Some(word) = answer {
                write(writer, &word.frame(), idle).await?;
            }
        }
    }

    fn want(&self) -> ReceiverWord {
        ReceiverWord::Want { next: self.next, upto: self.upto }
    }

    /// Begins to write what has come, or to finish when there is nothing more to come.
    fn maybe_write(&mut self) {
        if self.writing.is_some() {
            return;
        }
        let is_complete = self.next == self.chunk_count;
        if !is_complete && self.queue.is_empty() {
            return;
        }
        let Some(File { mut sink, _turn: turn }) = self.file.take() else { return };
        self.writing = Some(match self.queue.pop_front() {
            Some(chunk) => {
                let number = self.next;
                Writing::Chunk(blocking(move || {
                    let result = sink.put(number, &chunk);
                    (File { sink, _turn: turn }, result)
                }))
            }
            None => Writing::Finish(blocking(move || {
                let result = sink.finish();
                drop(turn);
                result
            })),
        });
    }

    fn on_written(
        &mut self,
        file: File,
        result: io::Result<()>,
    ) -> Result<Option<ReceiverWord>, Broken> {
        self.file = Some(file);
        match result {
            Ok(()) => {
                self.next += 1;
                self.damaged_count = 0;
                self.upto = self.chunk_count.min(self.next.saturating_add(WINDOW));
                Ok(Some(self.want()))
            }
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                self.queue.clear();
                self.expected = self.next;
                self.ask_again().map(Some)
            }
            Err(error) => Err(Broken::Sink(error)),
        }
    }

    fn on_frame(&mut self, frame: Result<Bytes, Broken>) -> Result<Option<ReceiverWord>, Broken> {
        let payload = match frame {
            Ok(payload) => payload,
            // Its length was right, or else the next frame is no frame either.
            Err(Broken::Frame(FrameError::Checksum)) => return self.ask_again().map(Some),
            Err(error) => return Err(error),
        };
        let SenderWord::Chunk { number, bytes } = SenderWord::decode(payload)? else {
            return Err(Broken::Protocol("a second offer"));
        };
        if self.upto <= number {
            return Err(Broken::Protocol("a chunk that was not asked for"));
        }
        if number != self.expected {
            let was_sent_before = self.is_skipping && self.expected < number;
            let error = Err(Broken::Protocol("a chunk out of order"));
            return if was_sent_before { Ok(None) } else { error };
        }
        self.is_skipping = false;
        self.expected += 1;
        self.queue.push_back(bytes);
        Ok(None)
    }

    /// Has the sender go back to the first chunk that is not received whole.
    fn ask_again(&mut self) -> Result<ReceiverWord, Broken> {
        self.damaged_count += 1;
        if DAMAGED_MAX < self.damaged_count {
            return Err(Broken::Refused(Refused::Damaged));
        }
        self.is_skipping = true;
        let number = self.expected;
        tracing::warn!(number, "a chunk of a snapshot arrived damaged and is fetched again");
        Ok(ReceiverWord::Again { number })
    }
}

/// Waits for what is under way to the disk, if there is something.
async fn finish(writing: &mut Option<Writing>) -> Result<Written, Broken> {
    let panicked = |panic| Broken::Sink(io::Error::other(panic));
    let done = match writing {
        None => return pending().await,
        Some(Writing::Chunk(task)) => {
            task.await.map(|(file, result)| Written::Chunk(file, result)).map_err(panicked)
        }
        Some(Writing::Finish(task)) => match task.await {
            Ok(result) => result.map(|()| Written::Finished).map_err(Broken::Sink),
            Err(panic) => Err(panicked(panic)),
        },
    };
    *writing = None;
    done
}
