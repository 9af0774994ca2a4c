//! The steady state of calls allocates nothing, on either side: of any size, inline and in the pool.
//!
//! ```text
//!   this process: client ══ pair ══ server: attendant, workers      every thread's allocations are counted
//! ```
//!
//! Both ends are in one process, so one count has it all: the caller, the connection's thread, the workers. What it does
//! not show: the first calls, which fill the buffers; items of more than 256 KiB, whose memory is given back.

use std::thread;

use crate::asked_by_all;
use crate::support::{Watchdog, alone, log};
use narrows::{Options, SharedMemoryClient, SharedMemoryServer, WaitStrategy};

const INLINE: u32 = 1;
const POOLED: u32 = 2;

/// One test alone: the count is of the whole process.
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
        let client = SharedMemoryClient::over_with(b, &options).expect("greets");
        for method in [INLINE, POOLED] {
            for len in [32, 1 << 10, 64 << 10, 256 << 10] {
                let asked = asked_by(&client, method, len);
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

/// Allocations in a thousand calls, once a hundred have filled the buffers: the least of three times, since the test's
/// runner and a thread that starts ask for something now and then. What calls ask for would be there each time.
fn asked_by(client: &SharedMemoryClient, method: u32, len: usize) -> u64 {
    let request: Vec<u8> = (0..=u8::MAX).cycle().take(len).collect();
    let mut buffer = Vec::new();
    let mut call = || {
        client.call_into(method, &request, &mut buffer).expect("answers");
        assert!(buffer == request, "what came back is another");
    };
    (0..100).for_each(|_| call());
    let mut thousand = || {
        let before = asked_by_all();
        (0..1000).for_each(|_| call());
        asked_by_all() - before
    };
    (0..3).map(|_| thousand()).min().unwrap_or_default()
}
