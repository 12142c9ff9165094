//! Everything that we tell the user and that is not an error: diagnostics with stable codes, gathered in a [`Sink`].

use std::fmt;

use crate::error::Location;

/// How much a diagnostic matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Shown with `-v`.
    Note,
    /// Always shown.
    Warning,
}

/// One message to the user, with a stable kebab-case code and the place that it speaks of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnostic {
    /// How much it matters.
    pub severity: Severity,
    /// Stable kebab-case code, such as `unknown-field`.
    pub code: &'static str,
    /// The node or tensor that it speaks of.
    pub location: Location,
    /// One sentence without a final dot.
    pub message: String,
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let severity = match self.severity {
            Severity::Note => "note",
            Severity::Warning => "warning",
        };
        if self.location == Location::default() {
            write!(f, "{severity}[{}]: {}", self.code, self.message)
        } else {
            write!(f, "{severity}[{}]: {}: {}", self.code, self.location, self.message)
        }
    }
}

/// Gathers diagnostics in the order in which they were reported.
#[derive(Debug, Clone, Default)]
pub struct Sink {
    diagnostics: Vec<Diagnostic>,
}

impl Sink {
    /// Reports a note, which is shown with `-v`.
    pub fn note(&mut self, code: &'static str, location: Location, message: impl Into<String>) {
        self.push(Severity::Note, code, location, message.into());
    }

    /// Reports a warning.
    pub fn warn(&mut self, code: &'static str, location: Location, message: impl Into<String>) {
        self.push(Severity::Warning, code, location, message.into());
    }

    fn push(&mut self, severity: Severity, code: &'static str, location: Location, message: String) {
        // Passes that look again say the same again.
        let diagnostic = Diagnostic { severity, code, location, message };
        if !self.diagnostics.contains(&diagnostic) {
            self.diagnostics.push(diagnostic);
        }
    }

    /// All diagnostics so far, in order.
    #[must_use]
    pub fn diagnostics(&self) -> &[Diagnostic] {
        &self.diagnostics
    }
}
