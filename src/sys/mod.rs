//! The only place with `unsafe` and with system calls.
