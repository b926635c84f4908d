//! Somebody else on the same disk: what no server is to blame for.
//!
//! It writes to a file of its own, whose place was made long before, as a log does, and measures
//! how long the disk takes. A pause of writes that is no longer than the bystander's is the
//! disk's.

use std::{
    fs::File,
    os::unix::fs::FileExt,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

const FILE_BYTES: usize = 4 << 20;
const WRITE_BYTES: usize = 4 << 10;
const INTERVAL: Duration = Duration::from_millis(5);

pub(crate) struct Bystander {
    /// When each write was begun, and how long it took to be durable.
    done: Arc<Mutex<Vec<(Instant, Duration)>>>,
    is_stopping: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Bystander {
    pub(crate) fn start(dir: &Path) -> Self {
        let file = File::create(dir.join("bystander")).unwrap();
        file.write_all_at(&vec![0; FILE_BYTES], 0).unwrap();
        file.sync_data().unwrap();
        let (done, is_stopping) = (Arc::default(), Arc::new(AtomicBool::new(false)));
        let shared = (Arc::clone(&done), Arc::clone(&is_stopping));
        let thread = std::thread::spawn(move || write(&file, &shared.0, &shared.1));
        Self { done, is_stopping, thread: Some(thread) }
    }

    /// The longest write between two moments.
    pub(crate) fn longest(&self, from: Instant, to: Instant) -> Duration {
        let done = self.done.lock().unwrap();
        let within = done.iter().filter(|(began, _)| from < *began && *began < to);
        within.map(|(_, took)| *took).max().unwrap_or_default()
    }
}

impl Drop for Bystander {
    fn drop(&mut self) {
        self.is_stopping.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A measurement that has failed says so by itself.
            drop(thread.join());
        }
    }
}

fn write(file: &File, done: &Mutex<Vec<(Instant, Duration)>>, is_stopping: &AtomicBool) {
    let bytes = [7; WRITE_BYTES];
    let offsets = (0..FILE_BYTES / WRITE_BYTES).cycle();
    for number in offsets {
        if is_stopping.load(Ordering::Relaxed) {
            return;
        }
        let began = Instant::now();
        let offset = u64::try_from(number * WRITE_BYTES).unwrap();
        file.write_all_at(&bytes, offset).unwrap();
        file.sync_data().unwrap();
        done.lock().unwrap().push((began, began.elapsed()));
        std::thread::sleep(INTERVAL);
    }
}
