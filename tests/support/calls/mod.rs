//! An RPC server in a process of its own, with a stock of methods, and its clients.
//!
//! ```text
//!   test process                                   second process: the same binary, `--exact <test>`
//!     host!(options, |server| server.workers(1)) ──▶ binds, registers the stock (stock.rs), serves
//!     host.client() ─── calls ────────────────────▶ methods, which `note` events
//!     host.seen("gate in") ─── a call ────────────▶ the count of an event
//!     host.send("open") ── standard input ────────▶ opens the gate, ...; its end ends the process
//! ```

pub(crate) mod raw;
pub(crate) mod stock;

use std::cell::OnceCell;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::mpsc::Receiver;
use std::time::Duration;

use narrows::{Options, SharedMemoryClient, SharedMemoryServer};

use crate::support::fork_server::{Report, receive};
use crate::support::{Kept, Watchdog, argument, eventually, me, role, sys};
pub(crate) use stock::*;

/// Expands to the full name of the test that it is in.
macro_rules! here {
    () => {{
        fn f() {}
        let name = std::any::type_name_of_val(&f);
        let name = name.strip_suffix("::f").and_then(|name| name.split_once("::"));
        name.map(|(_, name)| name.to_owned()).expect("it is called in a test")
    }};
}
pub(crate) use here;

/// Starts a server in a process of its own. In that process it serves, and then the test returns.
macro_rules! host {
    ($options:expr, $configure:expr) => {{
        let options: narrows::Options = $options;
        let configure = $configure;
        match crate::support::calls::Host::start(&crate::support::calls::here!(), options.clone(), |path| {
            crate::support::calls::serve(path, &options, configure)
        }) {
            Some(host) => host,
            None => return,
        }
    }};
    ($options:expr) => {
        crate::support::calls::host!($options, |server: narrows::SharedMemoryServer| server)
    };
}
pub(crate) use host;

/// Returns the default options of these tests. The handshake timeout is long enough for a busy machine.
pub(crate) fn options() -> Options {
    Options::new().handshake_timeout(Duration::from_secs(60))
}

/// Returns options for the smallest possible rings, and for small ones.
pub(crate) fn rings() -> [Options; 3] {
    let tiny = options().slots(1).arena(64).max_calls_in_flight(1);
    let small = options().slots(2).arena(1024).max_calls_in_flight(2);
    [tiny, small, options()]
}

/// The second process of a test.
#[derive(Debug)]
pub(crate) struct Host {
    child: Kept,
    pub(crate) path: PathBuf,
    options: Options,
    control: OnceCell<SharedMemoryClient>,
    reports: Option<Receiver<Report>>,
    _folder: tempfile::TempDir,
    _watchdog: Watchdog,
}

impl Host {
    /// Starts the process. In the new process, runs `act` and returns `None`.
    pub(crate) fn start(test: &str, options: Options, act: impl FnOnce(&Path)) -> Option<Self> {
        let watchdog = Watchdog::within(test, Duration::from_secs(60));
        if role().is_some() {
            sys::alarm(90);
            act(Path::new(&argument()));
            return None;
        }
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("socket");
        let mut command = me(test, "host", path.to_str().expect("plain"));
        let mut child = Kept::start(command.stdin(Stdio::piped()).stdout(Stdio::piped()));
        let (control, reports) = (OnceCell::new(), Some(receive(child.0.stdout.take().expect("a pipe"))));
        Some(Self { child, path, options, control, reports, _folder: folder, _watchdog: watchdog })
    }

    /// Returns a client with the options of the server.
    pub(crate) fn client(&self) -> SharedMemoryClient {
        self.client_with(&self.options)
    }

    /// Returns a client, as soon as the server listens.
    pub(crate) fn client_with(&self, options: &Options) -> SharedMemoryClient {
        let connect = || SharedMemoryClient::builder(&self.path).options(options.clone()).connect();
        let mut last = None;
        eventually(|| last.insert(connect()).is_ok());
        last.expect("tried").expect("connects")
    }

    /// Returns how often the server's process has noted this event. The question has a connection of its own.
    pub(crate) fn seen(&self, what: &str) -> u64 {
        self.ask(SEEN, what)
    }

    /// Waits until the event was noted at least `times` times.
    #[track_caller]
    pub(crate) fn sees(&self, what: &str, times: u64) {
        assert!(eventually(|| self.seen(what) >= times), "never {times} times: {what}");
    }

    /// Returns a counter of `ServerStats` by its name.
    pub(crate) fn stat(&self, name: &str) -> u64 {
        self.ask(STAT, name)
    }

    /// Waits until the counter is at least `least`.
    #[track_caller]
    pub(crate) fn sees_stat(&self, name: &str, least: u64) {
        assert!(eventually(|| self.stat(name) >= least), "never {least}: {name}");
    }

    /// Sends an order to the second process.
    pub(crate) fn send(&mut self, order: &str) {
        let input = self.child.0.stdin.as_mut().expect("open");
        writeln!(input, "{order}").expect("it lives");
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.pid()
    }

    /// Kills the second process.
    pub(crate) fn kill(&mut self) {
        self.child.0.kill().expect("kills");
    }

    /// Sends a signal to the second process, to stop or to continue it.
    pub(crate) fn signal(&self, signal: i32) {
        sys::kill(i32::try_from(self.child.pid()).expect("a number"), signal);
    }

    /// Returns the reports of the second process. They can be taken once.
    pub(crate) fn reports(&mut self) -> Receiver<Report> {
        self.reports.take().expect("taken once")
    }

    /// Closes the connection that [`seen`](Self::seen) uses.
    pub(crate) fn leave(&mut self) {
        self.control.take();
    }

    /// Ends the second process, which has to succeed.
    pub(crate) fn end(mut self) {
        drop(self.child.0.stdin.take());
        let status = self.child.wait();
        assert!(status.success(), "the second process failed: {status}");
    }

    fn ask(&self, method: u32, what: &str) -> u64 {
        let control = self.control.get_or_init(|| self.client());
        let reply = control.call(method, what.as_bytes()).expect("the server lives");
        u64::from_le_bytes(reply[..8].try_into().expect("a number"))
    }
}

/// Runs in the second process: processes orders until there are no more.
pub(crate) fn process_orders(mut order: impl FnMut(&str)) {
    for line in BufReader::new(std::io::stdin()).lines().map_while(Result::ok) {
        order(&line);
    }
}
