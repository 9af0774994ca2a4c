//! Models of the shipped ring, checked by loom.
