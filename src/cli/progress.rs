//! A progress bar with the time that is left, on standard error.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use crate::quant::Progress;

/// Draws the stages of a run, one bar at a time (nothing when hidden), and keeps how long each took.
pub(super) struct Bar {
    is_visible: bool,
    current: Mutex<Option<ProgressBar>>,
    stages: Mutex<Stages>,
}

/// Stages in the order in which they first began.
#[derive(Default)]
struct Stages {
    done: Vec<(String, Duration)>,
    running: Option<(String, Instant)>,
}

impl Stages {
    fn end(&mut self) {
        let Some((name, start)) = self.running.take() else { return };
        match self.done.iter_mut().find(|(n, _)| *n == name) {
            Some((_, time)) => *time += start.elapsed(),
            None => self.done.push((name, start.elapsed())),
        }
    }
}

impl Bar {
    pub(super) fn new(is_visible: bool) -> Self {
        Bar { is_visible, current: Mutex::new(None), stages: Mutex::default() }
    }

    /// The stages so far and the time that each took, all its rounds together.
    pub(super) fn stages(&self) -> Vec<(String, Duration)> {
        self.stages.lock().unwrap_or_else(PoisonError::into_inner).done.clone()
    }

    fn with(&self, f: impl FnOnce(&mut Option<ProgressBar>)) {
        if let Ok(mut current) = self.current.lock() {
            f(&mut current);
        }
    }
}

impl Progress for Bar {
    fn begin(&self, stage: &str, steps: u64) {
        let mut stages = self.stages.lock().unwrap_or_else(PoisonError::into_inner);
        stages.end();
        stages.running = Some((stage.to_owned(), Instant::now()));
        drop(stages);
        if !self.is_visible {
            return;
        }
        let bar = ProgressBar::new(steps);
        if let Ok(style) = ProgressStyle::with_template("{msg:24} {bar:30} {pos}/{len}  {elapsed}, {eta} left") {
            bar.set_style(style);
        }
        bar.set_message(stage.to_owned());
        self.with(|current| {
            if let Some(before) = current.replace(bar) {
                before.finish_and_clear();
            }
        });
    }

    fn advance(&self, steps: u64) {
        self.with(|current| {
            if let Some(bar) = current {
                bar.inc(steps);
            }
        });
    }

    fn end(&self) {
        self.stages.lock().unwrap_or_else(PoisonError::into_inner).end();
        self.with(|current| {
            if let Some(bar) = current.take() {
                bar.finish_and_clear();
            }
        });
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.end();
    }
}
