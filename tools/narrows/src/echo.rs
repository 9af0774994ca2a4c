//! `narrows serve-echo`: sends back each message.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use clap::Args;
use narrows::{
    Closer, ConnectionError, Options, RecvError, SendError, SharedMemoryServer, SharedMemoryStream, Stats,
};

use crate::{Wait, format, signals};

/// The options of `serve-echo`.
#[derive(Debug, Args)]
pub(crate) struct Echo {
    /// Where clients connect.
    path: PathBuf,
    /// Serves calls: method 0 returns its request.
    #[arg(long)]
    calls: bool,
    /// Bytes of the longest message that is accepted.
    #[arg(long, value_name = "BYTES")]
    max_message: Option<usize>,
    /// How this side waits.
    #[arg(long, value_enum, default_value_t = Wait::Adaptive)]
    wait: Wait,
}

/// The method that returns its request.
pub(crate) const METHOD: u32 = 0;

impl Echo {
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        let mut options = Options::new().wait(self.wait.strategy());
        if let Some(bytes) = self.max_message {
            options = options.max_message(bytes);
        }
        if self.calls { self.calls(&options) } else { self.streams(&options) }
    }

    fn calls(&self, options: &Options) -> anyhow::Result<ExitCode> {
        let server = SharedMemoryServer::bind_with(&self.path, options)
            .map_err(|error| format::unbindable(&self.path, &error))?
            .inline(METHOD, |request, reply| {
                reply.extend_from_slice(request.bytes());
                Ok(())
            })
            .spawn()
            .map_err(|error| format::unbindable(&self.path, &error))?;
        let (asked, end) = mpsc::channel();
        signals::on_signal(move || {
            let _ended_already = asked.send(());
        })?;
        println!("serving calls at {}; Ctrl-C ends", self.path.display());
        let _ended = end.recv();
        println!("{} calls of {} clients", server.stats().calls, server.stats().accepted);
        let _drained = server.shutdown(Duration::from_secs(1));
        Ok(ExitCode::SUCCESS)
    }

    fn streams(&self, options: &Options) -> anyhow::Result<ExitCode> {
        let listener = options.bind(&self.path).map_err(|error| format::unbindable(&self.path, &error))?;
        let closer = listener.closer();
        signals::on_signal(move || closer.close())?;
        println!("listening at {}; Ctrl-C ends", self.path.display());
        let mut clients: Vec<(JoinHandle<()>, Closer)> = Vec::new();
        for accepted in listener.incoming() {
            clients.retain(|(thread, _)| !thread.is_finished());
            match accepted {
                Ok(stream) => {
                    let closer = stream.closer();
                    clients.push((thread::spawn(move || serve(stream)), closer));
                }
                Err(error) => {
                    eprintln!("narrows: cannot accept: {error}");
                    thread::sleep(Duration::from_millis(100));
                }
            }
        }
        // A process that just exits looks to its clients like a crash.
        clients.iter().for_each(|(_, closer)| closer.close());
        clients.into_iter().for_each(|(thread, _)| drop(thread.join()));
        Ok(ExitCode::SUCCESS)
    }
}

fn serve(mut stream: SharedMemoryStream) {
    let (pid, uid) = (stream.peer_cred().pid(), stream.peer_cred().uid());
    println!("process {pid} of user {uid} came");
    let ended = echo(&mut stream);
    let Stats { messages_received: messages, bytes_received: bytes, .. } = stream.stats();
    println!("process {pid}: {ended}; {messages} messages, {bytes} B");
}

/// Echoes until the connection ends. Returns a description of the end.
fn echo(stream: &mut SharedMemoryStream) -> String {
    let mut message = Vec::new();
    loop {
        let received = match stream.recv_into(&mut message) {
            Ok(received) => received,
            Err(RecvError::ConnectionLost(ConnectionError::Disconnected)) => return "it closed".into(),
            Err(error) => return error.to_string(),
        };
        match stream.send_tagged(&message, received.tag) {
            Ok(()) => {}
            Err(SendError::ConnectionLost(ConnectionError::Disconnected)) => {
                return "it closed before its answer came".into();
            }
            Err(error) => return error.to_string(),
        }
    }
}
