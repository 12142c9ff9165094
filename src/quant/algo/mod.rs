//! Algorithms that make a float model easier to quantize, or its quantized weights better. One file each, with its
//! paper; each says what it changed and is kept only where it helps.

pub mod awq;
pub mod bias_correct;
pub mod block_gptq;
pub mod blocks;
pub mod channels;
pub mod compensate;
pub mod equalize;
pub mod hqq;
pub mod layout;
pub mod matrix;
pub mod moments;
