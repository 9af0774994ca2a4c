//! Calls with typed values: values that decode, values that do not, and bytes that are left over.

use narrows::{CallError, HandlerError, SharedMemoryClient, SharedMemoryServer, SharedMemoryStream};

#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
struct Edit {
    path: String,
    lines: Vec<(u32, String)>,
    saved: Option<bool>,
}

#[test]
fn values_go_there_and_back() {
    let (a, b) = SharedMemoryStream::pair().expect("a pair");
    let server = std::thread::spawn(move || {
        SharedMemoryServer::new()
            .method_typed(1, |_, edit: Edit| Ok(Edit { saved: Some(true), ..edit }))
            .inline_typed(2, |request, (a, b): (u64, u64)| {
                assert_eq!(request.method(), 2);
                a.checked_sub(b).ok_or_else(|| HandlerError::new(3, "below zero"))
            })
            .serve_stream(b)
    });
    let client = SharedMemoryClient::over(a).expect("the handshake succeeds");
    for len in [0, 1, 15, 1000, 50_000] {
        let lines = (0..len).map(|i| (i, "x".repeat(i as usize % 7))).collect();
        let edit = Edit { path: "src/tide.rs".into(), lines, saved: None };
        let saved: Edit = client.call_typed(1, &edit).expect("answers");
        assert_eq!(saved, Edit { saved: Some(true), ..edit });
    }
    assert_eq!(client.call_typed::<_, u64>(2, &(7_u64, 5_u64)).expect("answers"), 2);
    let below = client.call_typed::<_, u64>(2, &(5_u64, 7_u64));
    assert!(
        matches!(below, Err(CallError::Failed(error)) if (error.code(), error.text()) == (3, "below zero"))
    );
    let short = client.call(2, &[1]);
    assert!(matches!(short, Err(CallError::Failed(error)) if error.code() == u32::MAX));
    let long = client.call(2, &[1, 1, 1]);
    assert!(matches!(long, Err(CallError::Failed(error)) if error.text().contains("left over")));
    assert!(matches!(client.call_typed::<_, Edit>(2, &(9_u64, 1_u64)), Err(CallError::Codec(_))));
    assert_eq!(client.call(2, &[3, 1]).expect("answers").decode::<u64>().expect("fits"), 2);
    drop(client);
    assert!(server.join().expect("no panic").is_ok());
}
