//! A plugin that exchanges one message and leaves nothing open: `tests/stream/peer_monitor.rs` loads and unloads it.

#![allow(unsafe_code)]

/// Returns 0 if a message came through.
// No other symbol of the program has this name.
#[unsafe(no_mangle)]
pub extern "C" fn narrows_plugin_run() -> i32 {
    let Ok((mut a, mut b)) = narrows_tests::SharedMemoryStream::pair() else { return 1 };
    match (a.send(b"hello"), b.recv_into(&mut Vec::new())) {
        (Ok(()), Ok(_)) => 0,
        _ => 2,
    }
}
