//! One side of a connection at work: sends and receives whole messages, and agrees with the other side by signals.

use anyhow::{Result, bail};

use crate::source::{Check, Checked, Source};
use crate::system::{Job, ReceiveHalf, SendHalf, System};

pub(crate) struct Endpoint<S: System> {
    sender: S::Sender,
    receiver: S::Receiver,
    source: Source,
    check: Check,
    batch: usize,
}

impl<S: System> Endpoint<S> {
    pub(crate) fn open(job: &Job) -> Result<Self> {
        let (sender, receiver) = S::open(job.side, &job.folder, &job.work)?;
        let (source, check) = (Source::new(job.work.size), Check::new(job.work.size));
        Ok(Self { sender, receiver, source, check, batch: job.work.batch })
    }

    #[inline]
    pub(crate) fn receive(&mut self) -> Result<Checked> {
        self.receiver.receive(&mut self.check)?;
        self.check.take_result()
    }

    /// Returns how many messages it has received, without signals.
    pub(crate) fn received(&self) -> u64 {
        self.check.count()
    }

    #[inline]
    pub(crate) fn send_batch(&mut self) -> Result<()> {
        self.sender.send_batch(&mut self.source, self.batch)
    }

    /// Sends a batch and receives as many replies.
    #[inline]
    pub(crate) fn round_trip(&mut self) -> Result<()> {
        self.send_batch()?;
        for _ in 0..self.batch {
            if self.receive()? != Checked::Message {
                bail!("a signal instead of a reply");
            }
        }
        Ok(())
    }

    /// Receives one message and sends a batch.
    pub(crate) fn echo(&mut self) -> Result<()> {
        match self.receive()? {
            Checked::Message => self.send_batch(),
            signal => bail!("{signal:?} instead of a message"),
        }
    }

    pub(crate) fn send_signal(&mut self, signal: Checked) -> Result<()> {
        let message = if signal == Checked::Mark { self.source.mark() } else { self.source.stop() };
        self.sender.send(&message)?;
        self.sender.flush()
    }

    /// Sends a signal and waits for its answer.
    pub(crate) fn agree(&mut self, signal: Checked) -> Result<()> {
        self.send_signal(signal)?;
        let answer = self.receive()?;
        if answer != signal {
            bail!("{answer:?} instead of {signal:?}");
        }
        Ok(())
    }

    /// Waits for a signal and answers it.
    pub(crate) fn answer_signal(&mut self) -> Result<Checked> {
        let signal = self.receive()?;
        self.send_signal(signal)?;
        Ok(signal)
    }
}
