//! A progress bar with the time that is left, on standard error.

use std::sync::Mutex;

use indicatif::{ProgressBar, ProgressStyle};

use crate::quant::Progress;

/// Draws the stages of a run, one bar at a time; draws nothing when hidden.
pub(super) struct Bar {
    is_visible: bool,
    current: Mutex<Option<ProgressBar>>,
}

impl Bar {
    pub(super) fn new(is_visible: bool) -> Self {
        Bar { is_visible, current: Mutex::new(None) }
    }

    fn with(&self, f: impl FnOnce(&mut Option<ProgressBar>)) {
        if let Ok(mut current) = self.current.lock() {
            f(&mut current);
        }
    }
}

impl Progress for Bar {
    fn begin(&self, stage: &str, steps: u64) {
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
