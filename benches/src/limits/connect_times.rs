//! From nothing to the first reply: side B accepts and echoes, side A connects, sends, receives, and begins anew.
//!
//! Connect, send and the wait for the reply are timed; the end of the connection is not. [`Connect`] is the part that a
//! system brings, so that narrows is measured by the same loop as the bare Unix socket.

use std::fmt;
use std::io::{Read, Write};
use std::marker::PhantomData;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::driver::Measurement;
use crate::record::SideReport;
use crate::retry::retry;
use crate::source::{Check, Checked, Source};
use crate::sys;
use crate::system::{Job, Side, Work, WorkKind};
use crate::timing::{Samples, UsageMeter};

/// A system that connects and accepts.
pub trait Connect {
    /// As the tables name it.
    const NAME: &'static str;
    /// The accepting end.
    type Listener;
    /// A connection.
    type Stream;
    /// Listens at this path.
    fn listen(path: &Path) -> Result<Self::Listener>;
    /// Waits for the next connection.
    fn accept(listener: &Self::Listener) -> Result<Self::Stream>;
    /// Connects, at the first try.
    fn connect(path: &Path) -> Result<Self::Stream>;
    /// Sends a message.
    fn send(stream: &mut Self::Stream, message: &[u8]) -> Result<()>;
    /// Fills the buffer with a message of its length.
    fn receive(stream: &mut Self::Stream, buffer: &mut Vec<u8>) -> Result<()>;
}

/// Measures a [`Connect`].
pub struct ConnectTimes<D>(PhantomData<D>);

impl<D> fmt::Debug for ConnectTimes<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ConnectTimes")
    }
}

impl<D: Connect> Measurement for ConnectTimes<D> {
    const NAME: &'static str = D::NAME;
    const VERSION: &'static str = "";

    fn supports(work: &Work) -> bool {
        work.kind == WorkKind::Connect
    }

    fn run(job: &Job) -> Result<SideReport> {
        let path = job.folder.join("server");
        if job.side == Side::A { call::<D>(job, &path) } else { serve::<D>(job, &path) }
    }
}

fn call<D: Connect>(job: &Job, path: &Path) -> Result<SideReport> {
    let (mut source, mut check) = (Source::new(job.work.size), Check::new(job.work.size));
    let mut buffer = vec![0; job.work.size];
    let mut once = |message: &[u8]| -> Result<D::Stream> {
        let mut stream = D::connect(path)?;
        D::send(&mut stream, message)?;
        D::receive(&mut stream, &mut buffer)?;
        check.validate(&buffer);
        check.take_result()?;
        Ok(stream)
    };
    retry(|| if path.exists() { Ok(()) } else { Err("the other side does not listen") })?;
    thread::sleep(Duration::from_millis(5)); // The socket may be bound and not yet listening.
    let warm = Instant::now() + job.warm;
    while Instant::now() < warm {
        drop(once(source.message())?);
    }
    let (mut samples, mut count) = (Samples::for_time(job.time, Duration::ZERO), 0);
    let (meter, end) = (UsageMeter::start(false), Instant::now() + job.time);
    while Instant::now() < end {
        let message = source.message();
        let before = sys::ticks();
        let stream = once(message)?;
        samples.keep(sys::ticks().wrapping_sub(before));
        drop(stream);
        count += 1;
    }
    let mut report = meter.stop(count);
    report.latency = samples.latency(meter.nanos_per_tick());
    drop(once(&source.stop())?);
    Ok(report)
}

fn serve<D: Connect>(job: &Job, path: &Path) -> Result<SideReport> {
    let listener = D::listen(path)?;
    let (meter, mut check) = (UsageMeter::start(false), Check::new(job.work.size));
    let mut buffer = vec![0; job.work.size];
    loop {
        let mut stream = D::accept(&listener)?;
        D::receive(&mut stream, &mut buffer)?;
        check.validate(&buffer);
        D::send(&mut stream, &buffer)?;
        if check.take_result()? == Checked::Stop {
            // The reply is read before this process and the connection end.
            thread::sleep(Duration::from_millis(20));
            return Ok(meter.stop(check.count()));
        }
    }
}

/// The bare Unix socket.
pub(crate) struct UnixConnect;

impl Connect for UnixConnect {
    const NAME: &'static str = "unix-connect";
    type Listener = UnixListener;
    type Stream = UnixStream;

    fn listen(path: &Path) -> Result<UnixListener> {
        Ok(UnixListener::bind(path)?)
    }

    fn accept(listener: &UnixListener) -> Result<UnixStream> {
        Ok(listener.accept()?.0)
    }

    fn connect(path: &Path) -> Result<UnixStream> {
        Ok(UnixStream::connect(path)?)
    }

    fn send(stream: &mut UnixStream, message: &[u8]) -> Result<()> {
        Ok(stream.write_all(message)?)
    }

    fn receive(stream: &mut UnixStream, buffer: &mut Vec<u8>) -> Result<()> {
        Ok(stream.read_exact(buffer)?)
    }
}
