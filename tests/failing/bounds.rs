//! Pile-ups (B4, B6, B12, C4) and memory (B10).
