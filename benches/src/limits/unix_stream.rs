//! A Unix stream socket, as a program would use it: each message written whole, read until it is whole.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use anyhow::Result;

use crate::retry::retry;
use crate::source::Check;
use crate::system::{Access, ReceiveHalf, SendHalf, Side, System, Wait, Work, WorkKind};

pub(crate) struct UnixStreams;

impl System for UnixStreams {
    const NAME: &'static str = "unix-stream";
    const VERSION: &'static str = "";
    type Sender = UnixWriter;
    type Receiver = UnixReader;

    fn supports(work: &Work) -> bool {
        let what = !matches!(work.kind, WorkKind::Memory | WorkKind::Connect);
        what && work.wait != Wait::Spin && work.access == Access::Copy
    }

    fn open(side: Side, folder: &Path, work: &Work) -> Result<(UnixWriter, UnixReader)> {
        let stream = connect(side, &folder.join("socket"))?;
        let batch = if work.batch > 1 { work.batch * work.size } else { 0 };
        let writer = UnixWriter { stream: stream.try_clone()?, batch, held: Vec::with_capacity(batch) };
        Ok((writer, UnixReader { stream, buffer: vec![0; work.size] }))
    }
}

/// Connects side A to side B.
pub fn connect(side: Side, path: &Path) -> Result<UnixStream> {
    match side {
        Side::A => retry(|| UnixStream::connect(path)),
        Side::B => Ok(UnixListener::bind(path)?.accept()?.0),
    }
}

/// Writes; a batch is put together in memory first.
pub(crate) struct UnixWriter {
    stream: UnixStream,
    batch: usize,
    held: Vec<u8>,
}

impl SendHalf for UnixWriter {
    fn send(&mut self, message: &[u8]) -> Result<()> {
        if self.batch == 0 {
            return Ok(self.stream.write_all(message)?);
        }
        self.held.extend_from_slice(message);
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        if self.batch > 0 {
            self.stream.write_all(&self.held)?;
            self.held.clear();
        }
        Ok(())
    }
}

/// Reads.
pub(crate) struct UnixReader {
    stream: UnixStream,
    buffer: Vec<u8>,
}

impl ReceiveHalf for UnixReader {
    fn receive(&mut self, check: &mut Check) -> Result<()> {
        self.stream.read_exact(&mut self.buffer)?;
        check.validate(&self.buffer);
        Ok(())
    }
}
