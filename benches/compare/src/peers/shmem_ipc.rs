//! shmem-ipc: a ring in a sealed memfd, with an eventfd for each direction of waking.
//!
//! Configuration: `sharedring` with `send_raw`/`receive_raw` and `block_until_readable`/`block_until_writable`, as in
//! its examples `client.rs` and `server.rs`, with the descriptors passed over a Unix socket, as its README suggests;
//! items are whole messages. `Park` sleeps on the eventfds (written only when the ring was empty or full); `Spin` uses
//! the low-level halves, which its documents name for that. A batch is one closure that writes, or lends, several.
//! Better at than narrows: built of the smallest parts, and `hugetlb` and `mlock` are there.
//! Cannot: messages of several sizes, a timeout, an end (a peer that dies leaves the other asleep), spin then sleep.

use std::fs::File;
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use harness::limits::unix_stream;
use harness::{
    Check, ReceiveBuffer, ReceiveHalf, Result, SendHalf, Side, Source, System, Wait, Work, anyhow,
};
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, UnixAddr, recvmsg, sendmsg};
use shmem_ipc::sharedring;

use crate::{rendezvous, sys};

/// See the module.
pub(crate) struct ShmemIpc<const N: usize>;

impl<const N: usize> System for ShmemIpc<N> {
    const NAME: &'static str = "shmem-ipc";
    const VERSION: &'static str = "0.3.0";
    type Sender = ShmemIpcSender<N>;
    type Receiver = ShmemIpcReceiver<N>;

    fn supports(work: &Work) -> bool {
        work.wait != Wait::Adaptive
    }

    fn open(side: Side, folder: &Path, work: &Work) -> Result<(ShmemIpcSender<N>, ShmemIpcReceiver<N>)> {
        let (spin, capacity) = (work.wait == Wait::Spin, rendezvous::slots(N));
        let stream = unix_stream::connect(side, &folder.join("socket"))?;
        let ring = sharedring::Receiver::<[u8; N]>::new(capacity)?;
        pass(
            &stream,
            &[ring.memfd().as_raw_fd(), ring.empty_signal().as_raw_fd(), ring.full_signal().as_raw_fd()],
        )?;
        let [memory, empty, full] = take(&stream)?;
        let sender = ShmemIpcSender { ring: sharedring::Sender::open(capacity, memory, empty, full)?, spin };
        let buffer = ReceiveBuffer::new(work);
        let lent = Lent { next: std::ptr::null(), left: 0, all: 0 };
        Ok((sender, ShmemIpcReceiver { ring, spin, buffer, batch: work.batch, lent }))
    }
}

fn pass(stream: &UnixStream, descriptors: &[RawFd]) -> Result<()> {
    let message = [ControlMessage::ScmRights(descriptors)];
    sendmsg::<UnixAddr>(stream.as_raw_fd(), &[IoSlice::new(b"!")], &message, MsgFlags::empty(), None)?;
    Ok(())
}

fn take(stream: &UnixStream) -> Result<[File; 3]> {
    let mut byte = [0];
    let mut parts = [IoSliceMut::new(&mut byte)];
    let mut room = nix::cmsg_space!([RawFd; 3]);
    let came =
        recvmsg::<UnixAddr>(stream.as_raw_fd(), &mut parts, Some(&mut room), MsgFlags::MSG_CMSG_CLOEXEC)?;
    let Some(ControlMessageOwned::ScmRights(descriptors)) = came.cmsgs()?.next() else {
        return Err(anyhow!("no descriptors"));
    };
    let files: Vec<File> = descriptors.into_iter().map(sys::own).map(<OwnedFd as Into<File>>::into).collect();
    files.try_into().map_err(|_| anyhow!("not three descriptors"))
}

/// See the module.
pub(crate) struct ShmemIpcSender<const N: usize> {
    ring: sharedring::Sender<[u8; N]>,
    spin: bool,
}

impl<const N: usize> ShmemIpcSender<N> {
    /// Waits for room, then lets `write` write some messages.
    #[inline]
    fn with_room(&mut self, write: impl FnOnce(*mut [u8; N], usize) -> usize) -> Result<()> {
        if self.spin {
            while self.ring.sender_mut().write_count()? == 0 {
                std::hint::spin_loop();
            }
            self.ring.sender_mut().send(write)?;
        } else {
            self.ring.block_until_writable()?;
            self.ring.send_raw(write)?;
        }
        Ok(())
    }
}

impl<const N: usize> SendHalf for ShmemIpcSender<N> {
    #[inline]
    fn send(&mut self, message: &[u8]) -> Result<()> {
        let message: &[u8; N] = message.try_into()?;
        self.with_room(|slot, _| {
            // SAFETY: the ring lends room for one item at least, to us alone until the closure ends.
            unsafe { *slot = *message };
            1
        })
    }

    #[inline]
    fn send_batch(&mut self, source: &mut Source, messages: usize) -> Result<()> {
        let mut left = messages;
        while left > 0 {
            self.with_room(|slot, room| {
                let now = room.min(left);
                for at in 0..now {
                    if let Ok(message) = <&[u8; N]>::try_from(source.message()) {
                        // SAFETY: the ring lends room for so many items.
                        unsafe { *slot.add(at) = *message };
                    }
                }
                left -= now;
                now
            })?;
        }
        Ok(())
    }
}

/// See the module.
pub(crate) struct ShmemIpcReceiver<const N: usize> {
    ring: sharedring::Receiver<[u8; N]>,
    spin: bool,
    buffer: ReceiveBuffer,
    /// Messages taken from the ring at once, at most.
    batch: usize,
    lent: Lent<N>,
}

/// Messages of a batch that the ring lends until they are given back.
struct Lent<const N: usize> {
    next: *const [u8; N],
    left: usize,
    all: usize,
}

impl<const N: usize> ShmemIpcReceiver<N> {
    #[inline]
    fn wait(&mut self) -> Result<()> {
        if self.spin {
            while self.ring.receiver_mut().read_count()? == 0 {
                std::hint::spin_loop();
            }
        } else {
            self.ring.block_until_readable()?;
        }
        Ok(())
    }

    /// Lets `read` read some messages, once there are any.
    #[inline]
    fn with_messages(&mut self, read: impl FnOnce(*const [u8; N], usize) -> usize) -> Result<()> {
        if self.spin {
            self.ring.receiver_mut().recv(read)?;
        } else {
            self.ring.receive_raw(read)?;
        }
        Ok(())
    }

    fn borrow(&mut self) -> Result<()> {
        self.wait()?;
        let (batch, lent) = (self.batch, &mut self.lent);
        self.ring.receiver_mut().recv(|slot, count| {
            let all = count.min(batch);
            *lent = Lent { next: slot, left: all, all };
            0
        })?;
        Ok(())
    }
}

impl<const N: usize> ReceiveHalf for ShmemIpcReceiver<N> {
    #[inline]
    fn receive(&mut self, check: &mut Check) -> Result<()> {
        if self.batch == 1 {
            self.wait()?;
            let mut buffer = std::mem::take(&mut self.buffer);
            self.with_messages(|slot, _| {
                validate(slot, &mut buffer, check);
                1
            })?;
            self.buffer = buffer;
            return Ok(());
        }
        if self.lent.left == 0 {
            self.borrow()?;
        }
        validate(self.lent.next, &mut self.buffer, check);
        self.lent.next = self.lent.next.wrapping_add(1);
        self.lent.left -= 1;
        if self.lent.left == 0 {
            let all = self.lent.all;
            self.with_messages(|_, _| all)?;
        }
        Ok(())
    }
}

#[inline]
fn validate<const N: usize>(slot: *const [u8; N], buffer: &mut ReceiveBuffer, check: &mut Check) {
    // SAFETY: the ring lends the item until it is given back, and the other side, this same program, leaves it alone.
    buffer.validate(unsafe { &*slot }, check);
}
