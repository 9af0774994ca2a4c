//! The steady state of calls allocates nothing on either side, for calls of any size, inline and in the worker pool.
//!
//! ```text
//!   this process: client ══ pair ══ server: driver, workers         every thread's allocations are counted
//! ```
//!
//! Both ends are in one process, so one counter covers the caller, the connection driver and the workers. The test does not
//! cover the first calls, which fill the buffers, and items of more than 256 KiB, whose memory is freed after each call.

use std::thread;

use crate::allocations_of_all_threads;
use crate::support::{Watchdog, alone, log};
use narrows::{Options, SharedMemoryClient, SharedMemoryServer, WaitStrategy};

const INLINE: u32 = 1;
const POOLED: u32 = 2;

/// The test runs alone, since the counter is of the whole process.
#[test]
fn the_steady_state_of_calls_allocates_nothing() {
    const NAME: &str = "the_steady_state_of_calls_allocates_nothing";
    if !alone(NAME) {
        return;
    }
    let _watchdog = Watchdog::new(NAME);
    let mut wrong = Vec::new();
    for strategy in [WaitStrategy::Park, WaitStrategy::Adaptive] {
        let options = Options::new().wait(strategy);
        let (a, b) = options.pair().expect("a pair");
        let served = thread::spawn(move || {
            let server = SharedMemoryServer::new()
                .workers(1)
                .inline(INLINE, |request, reply| {
                    reply.extend_from_slice(request.bytes());
                    Ok(())
                })
                .method(POOLED, |request, reply| {
                    reply.extend_from_slice(request.bytes());
                    Ok(())
                });
            server.serve_stream(a).expect("a clean end");
        });
        let client = SharedMemoryClient::over_with(b, &options).expect("the handshake succeeds");
        for method in [INLINE, POOLED] {
            for len in [32, 1 << 10, 64 << 10, 256 << 10] {
                let asked = count_allocations(&client, method, len);
                if asked > 0 {
                    wrong.push(format!("{strategy:?}: {asked} of method {method} with {len} bytes"));
                }
            }
        }
        drop(client);
        served.join().expect("no panic");
    }
    assert!(wrong.is_empty(), "allocations in 1000 calls: {wrong:#?}");
    log("no allocations in 16 x 1000 calls");
}

/// Returns the number of allocations in a thousand calls, after a hundred calls have filled the buffers. It is the minimum of
/// three runs, since the test runner or a starting thread may allocate now and then. Allocations of calls would occur in each
/// run.
fn count_allocations(client: &SharedMemoryClient, method: u32, len: usize) -> u64 {
    let request: Vec<u8> = (0..=u8::MAX).cycle().take(len).collect();
    let mut buffer = Vec::new();
    let mut call = || {
        client.call_into(method, &request, &mut buffer).expect("answers");
        assert!(buffer == request, "the reply is not the request");
    };
    (0..100).for_each(|_| call());
    let mut thousand = || {
        let before = allocations_of_all_threads();
        (0..1000).for_each(|_| call());
        allocations_of_all_threads() - before
    };
    (0..3).map(|_| thousand()).min().unwrap_or_default()
}
