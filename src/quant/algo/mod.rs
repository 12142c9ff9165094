//! Algorithms that make a float model easier to quantize, or its quantized weights better. One file each, with its
//! paper; each says what it changed and is kept only where it helps.

pub mod bias_correct;
pub mod channels;
pub mod compensate;
pub mod equalize;
pub mod layout;
