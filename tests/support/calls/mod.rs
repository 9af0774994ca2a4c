//! A server of calls in a process of its own, with a stock of methods; and clients of it.
//!
//! ```text
//!   test process                                   second process: the same binary, `--exact <test>`
//!     host!(options, |server| server.workers(1)) ──▶ binds, has the stock (stock.rs), serves
//!     host.client() ─── calls ────────────────────▶ methods; they `note` what they see
//!     host.seen("gate in") ─── a call ────────────▶ how often that was noted
//!     host.say("open") ─── standard input ────────▶ opens the gate, ...; its end ends the process
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

/// The name of the test that this stands in, as the test runner knows it.
macro_rules! here {
    () => {{
        fn f() {}
        let name = std::any::type_name_of_val(&f);
        let name = name.strip_suffix("::f").and_then(|name| name.split_once("::"));
        name.map(|(_, name)| name.to_owned()).expect("stands in a test")
    }};
}
pub(crate) use here;

/// A server in a process of its own; in that process it serves, and the test returns.
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

/// What tests ask for where nothing else matters: a busy machine has time to shake hands.
pub(crate) fn options() -> Options {
    Options::new().handshake_timeout(Duration::from_secs(60))
}

/// The smallest rings that there are, and small ones.
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
    /// Starts it; in it, `act` runs, and there is nothing to return.
    pub(crate) fn start(test: &str, options: Options, act: impl FnOnce(&Path)) -> Option<Self> {
        let watchdog = Watchdog::within(test, Duration::from_secs(60));
        if role().is_some() {
            sys::alarm(90);
            act(Path::new(&argument()));
            return None;
        }
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("door");
        let mut command = me(test, "host", path.to_str().expect("plain"));
        let mut child = Kept::start(command.stdin(Stdio::piped()).stdout(Stdio::piped()));
        let (control, reports) = (OnceCell::new(), Some(receive(child.0.stdout.take().expect("a pipe"))));
        Some(Self { child, path, options, control, reports, _folder: folder, _watchdog: watchdog })
    }

    /// A client with the options of the server.
    pub(crate) fn client(&self) -> SharedMemoryClient {
        self.client_with(&self.options)
    }

    /// A client, as soon as somebody listens.
    pub(crate) fn client_with(&self, options: &Options) -> SharedMemoryClient {
        let connect = || SharedMemoryClient::builder(&self.path).options(options.clone()).connect();
        let mut last = None;
        eventually(|| last.insert(connect()).is_ok());
        last.expect("tried").expect("connects")
    }

    /// How often the server's process has noted this; over a connection of its own.
    pub(crate) fn seen(&self, what: &str) -> u64 {
        self.ask(SEEN, what)
    }

    /// Waits until it was noted so often at least.
    #[track_caller]
    pub(crate) fn sees(&self, what: &str, times: u64) {
        assert!(eventually(|| self.seen(what) >= times), "never {times} times: {what}");
    }

    /// A number of `ServerStats`, by its name.
    pub(crate) fn stat(&self, name: &str) -> u64 {
        self.ask(STAT, name)
    }

    /// Waits until it is as large at least.
    #[track_caller]
    pub(crate) fn sees_stat(&self, name: &str, least: u64) {
        assert!(eventually(|| self.stat(name) >= least), "never {least}: {name}");
    }

    /// Gives the second process an order.
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

    /// Stops the second process, or lets it go on.
    pub(crate) fn signal(&self, signal: i32) {
        sys::kill(i32::try_from(self.child.pid()).expect("a number"), signal);
    }

    /// What the second process reports, instead of what its test runner prints.
    pub(crate) fn reports(&mut self) -> Receiver<Report> {
        self.reports.take().expect("taken once")
    }

    /// Ends the connection over which it is asked what was seen.
    pub(crate) fn leave(&mut self) {
        self.control.take();
    }

    /// Ends the second process, which has to be well.
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

/// In the second process: waits for orders until there are no more.
pub(crate) fn obey(mut order: impl FnMut(&str)) {
    for line in BufReader::new(std::io::stdin()).lines().map_while(Result::ok) {
        order(&line);
    }
}
