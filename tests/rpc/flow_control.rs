//! Windows of streams, uploads and pushes: whatever fits a window passes, in any order of lengths.

use narrows::{Options, SharedMemoryClient, SharedMemoryServer};

use crate::support::{LONG, Watchdog};

/// Chunks and pushes of all lengths up to the longest pass each window: the credit that a receiver holds back is never what a
/// sender needs.
#[test]
fn the_longest_chunk_passes_behind_short_ones() {
    let _watchdog = Watchdog::new("the_longest_chunk_passes_behind_short_ones");
    for window in [1024, 1025, 1027, 4096, 1 << 20] {
        let options = Options::new().stream_window(window).push_window(window);
        let (a, b) = options.pair().expect("a pair");
        let server = SharedMemoryServer::new()
            .streaming(1, |request, chunks| {
                let short = usize::from(request.bytes()[0]);
                chunks.write_chunk(&vec![1; short])?;
                chunks.write_chunk(&vec![2; chunks.max_chunk()])?;
                chunks.write_chunk(&vec![3; short])?;
                Ok(chunks.write_chunk(&vec![4; chunks.max_chunk()])?)
            })
            .upload(2, |_, chunks, reply| {
                for chunk in chunks {
                    reply.extend(chunk?.len().to_le_bytes());
                }
                Ok(())
            })
            .method(3, move |request, _| {
                let (short, longest) = (usize::from(request.bytes()[0]), request.connection().max_push());
                request.connection().push(&vec![1; short])?;
                request.connection().push(&vec![2; longest])?;
                Ok(request.connection().push(&vec![3; longest])?)
            })
            .spawn()
            .expect("starts");
        server.adopt(b);
        let client = SharedMemoryClient::over_with(a, &options).expect("serves");
        for short in [0, 1, 100, 200] {
            let mut stream = client.call_streaming(1, &[short]).expect("sends");
            let mut lens = Vec::new();
            while let Some(chunk) = stream.next_chunk_timeout(LONG).expect("comes in time") {
                lens.push(chunk.len());
            }
            assert_eq!(
                (lens.len(), lens[0], lens[2]),
                (4, short.into(), short.into()),
                "a window of {window}"
            );

            let mut upload = client.start_upload(2, &[]).expect("sends");
            let longest = upload.max_chunk();
            for len in [short.into(), longest, short.into(), longest] {
                upload.write_chunk_timeout(&vec![9; len], LONG).expect("is taken in time");
            }
            assert_eq!(upload.finish_timeout(LONG).expect("answers").len(), 32);

            let pending = client.start_call(3, &[short]).expect("sends");
            let pushed: Vec<_> =
                (0..3).map(|_| client.next_push_timeout(LONG).expect("comes in time").len()).collect();
            assert_eq!((pushed[0], pushed[1]), (short.into(), pushed[2]), "a window of {window}");
            pending.wait().expect("answers");
        }
        server.shutdown(LONG);
    }
}
