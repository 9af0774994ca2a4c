//! What the server answers instead of a reply. The connection lives on each time.

use narrows::{CallError, SharedMemoryClient};

use crate::support::calls::{
    BAD_STREAM, BAD_UPLOAD, BIG, DUPLEX, ECHO, FAIL, PANIC, POOLED, STREAM, UPLOAD, host, options, rings,
};
use crate::support::eventually;

/// Returns the error that each of the four kinds of call gets for this method.
fn by_each_kind(client: &SharedMemoryClient, method: u32) -> [Option<CallError>; 4] {
    let whole = client.call(method, &[0; 8]).err();
    let streaming = client.call_streaming(method, &[0; 8]).expect("sends").find_map(Result::err);
    let upload = client.start_upload(method, &[]).expect("sends").finish().err();
    let (up, mut down) = client.start_duplex(method, &[]).expect("sends");
    up.end().expect("sends");
    [whole, streaming, upload, down.find_map(Result::err)]
}

fn lives(client: &SharedMemoryClient) {
    assert!(eventually(|| {
        assert_eq!(*client.call(ECHO, b"on").expect("lives on"), *b"on");
        client.stats().in_flight == 0 // Every slot is free again, those of notifications too.
    }));
}

#[test]
fn a_method_that_is_not_there() {
    let host = host!(options());
    for client in rings().map(|options| host.client_with(&options)) {
        for error in by_each_kind(&client, 999) {
            assert!(matches!(error, Some(CallError::UnknownMethod)), "{error:?}");
        }
        client.notify(999, b"no such method").expect("sends");
        lives(&client);
    }
    host.end();
}

#[test]
fn a_fallback_takes_whole_calls_of_any_number() {
    let host = host!(options(), |server: narrows::SharedMemoryServer| {
        server.fallback(|request, reply| {
            reply.extend_from_slice(&request.method().to_le_bytes());
            reply.extend_from_slice(request.bytes());
            Ok(())
        })
    });
    let client = host.client();
    for method in [0, 999, u32::MAX] {
        let reply = client.call(method, b"!").expect("answers");
        assert_eq!(*reply, [&method.to_le_bytes()[..], b"!"].concat());
        let [_, others @ ..] = by_each_kind(&client, method);
        assert!(others.iter().all(|it| matches!(it, Some(CallError::UnknownMethod))), "{others:?}");
    }
    lives(&client);
    host.end();
}

#[test]
fn a_method_that_is_called_the_wrong_way_names_the_right_one() {
    let host = host!(options());
    let kinds = [(ECHO, 0, "`call`"), (POOLED, 0, "`call`"), (STREAM, 1, "`call_streaming`")];
    let more = [(UPLOAD, 2, "`start_upload`"), (DUPLEX, 3, "`start_duplex`")];
    for client in rings().map(|options| host.client_with(&options)) {
        for (method, right, name) in kinds.into_iter().chain(more) {
            for (kind, error) in by_each_kind(&client, method).into_iter().enumerate() {
                match error {
                    None => assert_eq!(kind, right),
                    Some(CallError::WrongKind(is)) => {
                        assert!(kind != right && is.to_string().contains(name), "{is:?}");
                    }
                    Some(other) => panic!("{method} by {kind}: {other:?}"),
                }
            }
        }
        lives(&client);
    }
    host.end();
}

#[test]
fn a_method_fails_with_its_own_code_and_text() {
    let host = host!(options());
    let fail = |client: &SharedMemoryClient, text: &str| match client.call(FAIL, text.as_bytes()) {
        Err(CallError::Failed(error)) => (error.code(), error.text().to_owned()),
        other => panic!("{other:?}"),
    };
    // A text has at most 1 KiB, or what a frame holds beside two heads; no character is split.
    for (options, most) in rings().iter().zip([92, 244, 1024]) {
        let client = host.client_with(options);
        assert_eq!(fail(&client, "no"), (7, "no".into()));
        assert_eq!(fail(&client, ""), (7, String::new()));
        assert_eq!(fail(&client, &"x".repeat(5000)), (7, "x".repeat(most)));
        let letters = "a".to_owned() + &"é".repeat(2500);
        assert_eq!(fail(&client, &letters).1, letters[..most - 1], "{most}");
        lives(&client);
    }
    assert_eq!(host.stat("failed"), 12);
    host.end();
}

#[test]
fn a_panic_is_answered_and_counted_and_the_connection_lives() {
    let host = host!(options());
    for client in rings().map(|options| host.client_with(&options)) {
        for (request, said) in [("", "plainly"), ("oh", "oh")] {
            let error = client.call(PANIC, request.as_bytes()).expect_err("panics");
            assert!(matches!(&error, CallError::Panicked { message } if message == said), "{error:?}");
        }
        let chunks: Vec<_> = client.call_streaming(BAD_STREAM, &[]).expect("sends").collect();
        let [Ok(one), Ok(two), Err(CallError::Panicked { message: text })] = &chunks[..] else {
            panic!("{chunks:?}")
        };
        assert_eq!((&one[..], &two[..], &text[..]), (&b"one"[..], &b"two"[..], "three"));
        client.notify(PANIC, b"no such method").expect("sends");
        lives(&client);
    }
    host.sees_stat("panicked", 12);
    assert_eq!((host.stat("panicked"), host.stat("failed"), host.stat("violated")), (12, 0, 0));
    host.end();
}

#[test]
fn an_upload_that_the_server_has_ended_reports_the_error_at_finish() {
    let host = host!(options());
    for client in rings().map(|options| host.client_with(&options)) {
        let mut upload = client.start_upload(BAD_UPLOAD, &[]).expect("sends");
        let refused = (0..100_000).find_map(|_| upload.write_chunk(&[1; 90]).err());
        assert!(matches!(refused, Some(CallError::Cancelled)), "{refused:?}");
        let end = upload.finish();
        assert!(matches!(&end, Err(CallError::Failed(error)) if error.text() == "enough"), "{end:?}");
        lives(&client);
    }
    host.end();
}

#[test]
fn a_reply_that_is_too_large_is_an_error_of_this_call_alone() {
    let host = host!(options().max_message(1000));
    let client = host.client();
    assert_eq!(client.call(BIG, &1000_usize.to_le_bytes()).expect("fits").len(), 1000);
    for len in [1001_usize, 1 << 20] {
        match client.call(BIG, &len.to_le_bytes()) {
            Err(CallError::ReplyTooLarge { len: is, max }) => assert_eq!((is, max), (len, 1000)),
            other => panic!("{other:?}"),
        }
    }
    lives(&client);
    host.end();
}
