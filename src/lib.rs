//! Two processes on one Linux machine exchange messages through shared memory, with plain
//! blocking calls: no async, no runtime, no daemon.

#[cfg(not(all(target_os = "linux", target_pointer_width = "64")))]
compile_error!("narrows runs on 64-bit Linux only: it is built on memfd seals and shared futexes");

pub mod error;
pub mod layout;
pub mod mem;
#[allow(unsafe_code)]
mod sys;
