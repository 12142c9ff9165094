//! Parses the command line, runs it, and exits.

fn main() {}
