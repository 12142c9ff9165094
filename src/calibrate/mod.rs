//! Calibration: runs a model on data and observes the ranges of its values.

pub mod dataset;
