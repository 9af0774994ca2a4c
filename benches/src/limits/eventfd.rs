//! The bare eventfd: write the bytes to shared memory, write 1 to the eventfd; the other side sleeps in read.

use std::fs::File;
use std::io::{IoSlice, IoSliceMut, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;

use anyhow::{Result, bail};
use nix::cmsg_space;
use nix::sys::eventfd::EventFd as Event;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};

use super::hand_over::Mailboxes;
use super::unix_stream::connect;
use crate::source::Check;
use crate::sys;
use crate::system::{Access, ReceiveHalf, SendHalf, Side, System, Wait, Work, WorkKind};

pub(crate) struct EventFd;

impl System for EventFd {
    const NAME: &'static str = "eventfd";
    const VERSION: &'static str = "";
    type Sender = EventFdSender;
    type Receiver = EventFdReceiver;

    fn supports(work: &Work) -> bool {
        let what = work.kind == WorkKind::RoundTrip && work.batch == 1;
        what && work.wait == Wait::Park && work.access == Access::InPlace
    }

    fn open(side: Side, folder: &Path, work: &Work) -> Result<(EventFdSender, EventFdReceiver)> {
        let mailboxes = Mailboxes::open(side, folder, work.size)?;
        let socket = connect(side, &folder.join("socket"))?;
        // Side A makes both; the first is its own to write to.
        let [to_b, to_a] = if side == Side::A { make(&socket)? } else { take(&socket)? };
        let (out, inc) = if side == Side::A { (to_b, to_a) } else { (to_a, to_b) };
        let (own, other) =
            (mailboxes.payload(mailboxes.at(side)), mailboxes.payload(mailboxes.at(side.other())));
        Ok((
            EventFdSender { mailboxes: mailboxes.clone(), at: own, event: out },
            EventFdReceiver { mailboxes, at: other, event: inc },
        ))
    }
}

fn make(socket: &UnixStream) -> Result<[File; 2]> {
    let events = [Event::new()?, Event::new()?];
    let descriptors = events.each_ref().map(AsRawFd::as_raw_fd);
    let rights = [ControlMessage::ScmRights(&descriptors)];
    sendmsg::<()>(socket.as_raw_fd(), &[IoSlice::new(&[0])], &rights, MsgFlags::empty(), None)?;
    Ok(events.map(|event| File::from(std::os::fd::OwnedFd::from(event))))
}

fn take(socket: &UnixStream) -> Result<[File; 2]> {
    let (mut byte, mut space) = ([0], cmsg_space!([i32; 2]));
    let mut parts = [IoSliceMut::new(&mut byte)];
    let message = recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut space), MsgFlags::empty())?;
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(descriptors) = control {
            if let [one, other] = descriptors[..] {
                return Ok([sys::adopt(one), sys::adopt(other)]);
            }
        }
    }
    bail!("no eventfd came")
}

/// Writes, adds 1.
pub(crate) struct EventFdSender {
    mailboxes: Mailboxes,
    at: usize,
    event: File,
}

impl SendHalf for EventFdSender {
    #[inline]
    fn send(&mut self, message: &[u8]) -> Result<()> {
        self.mailboxes.bytes.write(self.at, message);
        Ok(self.event.write_all(&1_u64.to_ne_bytes())?)
    }
}

/// Sleeps and reads.
pub(crate) struct EventFdReceiver {
    mailboxes: Mailboxes,
    at: usize,
    event: File,
}

impl ReceiveHalf for EventFdReceiver {
    #[inline]
    fn receive(&mut self, check: &mut Check) -> Result<()> {
        self.event.read_exact(&mut [0; 8])?;
        check.validate(self.mailboxes.bytes.lend(self.at, check.size()));
        Ok(())
    }
}
