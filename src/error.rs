//! Errors: one line that says where, what was expected and what was found, and, where there is one, the way out.
//!
//! Inside the crate everything returns [`Result`], an [`anyhow::Result`], so that `bail!`, `ensure!` and `.context()`
//! work everywhere. Where the place matters, [`At::at`] puts a [`Location`] in front; where the user can do something
//! about it, [`WithHelp::help`] adds the way out, which the command line prints on a line of its own.

use std::fmt;

pub use anyhow::{Context, Result, anyhow, bail, ensure};

/// Where in a model something is: the graph path, then the node, then the slot or attribute.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Location {
    /// The node's name and operator, as `node "/conv1" (Conv)`, or another phrase that names the place.
    pub node: Option<String>,
    /// The value's name.
    pub value: Option<String>,
}

impl Location {
    /// A location that names a node by its label (its name, or `#index`) and its operator.
    #[must_use]
    pub fn node(label: &str, op: &str) -> Self {
        Location { node: Some(format!("node \"{label}\" ({op})")), value: None }
    }

    /// A location that names a value (a tensor in the graph).
    #[must_use]
    pub fn value(name: &str) -> Self {
        Location { node: None, value: Some(name.to_owned()) }
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.node, &self.value) {
            (Some(n), Some(v)) => write!(f, "{n}, tensor \"{v}\""),
            (Some(n), None) => f.write_str(n),
            (None, Some(v)) => write!(f, "tensor \"{v}\""),
            (None, None) => f.write_str("model"),
        }
    }
}

/// Adds a location to an error.
pub trait At<T> {
    /// Puts `location` in front of the error, if there is one.
    fn at(self, location: impl FnOnce() -> Location) -> Result<T>;
}

impl<T, E: Into<anyhow::Error>> At<T> for std::result::Result<T, E> {
    fn at(self, location: impl FnOnce() -> Location) -> Result<T> {
        self.map_err(|e| e.into().context(location().to_string()))
    }
}

/// An error with a way out: what the user can do about it.
#[derive(Debug)]
pub struct Helped {
    source: anyhow::Error,
    help: String,
}

impl Helped {
    /// What the user can do about it.
    #[must_use]
    pub fn help(&self) -> &str {
        &self.help
    }
}

impl fmt::Display for Helped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#}", self.source)
    }
}

impl std::error::Error for Helped {}

/// Adds the way out to an error.
pub trait WithHelp<T> {
    /// Attaches `help`, one line that starts with a verb, to the error, if there is one.
    fn help(self, help: impl FnOnce() -> String) -> Result<T>;
}

impl<T, E: Into<anyhow::Error>> WithHelp<T> for std::result::Result<T, E> {
    fn help(self, help: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|e| anyhow::Error::new(Helped { source: e.into(), help: help() }))
    }
}

/// The way out that belongs to `error`, if one was attached anywhere in its chain.
#[must_use]
pub fn help_of(error: &anyhow::Error) -> Option<&str> {
    error.chain().find_map(|e| e.downcast_ref::<Helped>()).map(Helped::help)
}

/// The error of type `E` in the chain of `error`, behind an attached way out, too.
#[must_use]
pub fn find<E: std::error::Error + 'static>(error: &anyhow::Error) -> Option<&E> {
    error.chain().find_map(|e| match e.downcast_ref::<Helped>() {
        Some(helped) => find(&helped.source),
        None => e.downcast_ref::<E>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn location_and_help_survive_the_chain() {
        let e: Result<()> = Err(anyhow!("rank 3, expected 4"));
        let e = e.at(|| Location::node("/conv1", "Conv")).help(|| "reshape it".into()).context("model \"m.onnx\"");
        let e = e.unwrap_err();
        assert_eq!(format!("{e:#}"), "model \"m.onnx\": node \"/conv1\" (Conv): rank 3, expected 4");
        assert_eq!(help_of(&e), Some("reshape it"));
    }

    #[test]
    fn causes_are_found_behind_help() {
        let e: Result<()> = Err(std::io::Error::from(std::io::ErrorKind::NotFound)).help(|| "look elsewhere".into());
        let e = e.context("reading").unwrap_err();
        assert_eq!(find::<std::io::Error>(&e).map(std::io::Error::kind), Some(std::io::ErrorKind::NotFound));
        assert!(find::<fmt::Error>(&e).is_none());
    }
}
