//! A thread beside a test or benchmark.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

/// A thread that does one thing again and again until dropped.
pub struct Background {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Background {
    /// Starts it. A step that starts others hands on what it is given: it turns true at the end.
    pub fn start(mut step: impl FnMut(&Arc<AtomicBool>) + Send + 'static) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let inner = stop.clone();
        let thread = thread::spawn(move || {
            while !inner.load(Ordering::Relaxed) {
                step(&inner);
            }
        });
        Self {
            stop,
            thread: Some(thread),
        }
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // A panic there has been printed already.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}
