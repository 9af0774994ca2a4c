//! ipc-channel: Rust channels between processes, over Unix sockets.
//!
//! Configuration: byte channels (`bytes_channel`, no serialisation) set up by an `IpcOneShotServer`, as in its README;
//! `recv` blocks (`Park`), `try_recv` polls (`Spin`). `InPlace` is what it offers for large data: `IpcSharedMemory`, a
//! memfd made for each message and mapped by the receiver, from 4 KiB on.
//! Better at than narrows: sends channels through channels; any number of senders; runs on other systems.
//! Cannot: batches, spin before it sleeps, a send that does not block in the kernel.

use std::path::Path;

use ::ipc_channel::ipc::{
    self, IpcBytesReceiver, IpcBytesSender, IpcOneShotServer, IpcReceiver, IpcSender, IpcSharedMemory,
};
use ::ipc_channel::{IpcError, TryRecvError};
use harness::{Access, Check, ReceiveHalf, Result, SendHalf, Side, System, Wait, Work, anyhow};
use serde::{Deserialize, Serialize};

use crate::rendezvous;

/// See the module.
pub(crate) struct IpcChannel;

/// Both ends of one side.
#[derive(Serialize, Deserialize)]
struct ChannelEnds {
    bytes: (IpcBytesSender, IpcBytesReceiver),
    memory: (IpcSender<IpcSharedMemory>, IpcReceiver<IpcSharedMemory>),
}

impl System for IpcChannel {
    const NAME: &'static str = "ipc-channel";
    const VERSION: &'static str = "0.23.1";
    type Sender = IpcChannelSender;
    type Receiver = IpcChannelReceiver;

    fn supports(work: &Work) -> bool {
        let known = work.access == Access::Copy || work.size >= 4 << 10;
        known && work.wait != Wait::Adaptive && work.batch == 1
    }

    fn open(side: Side, folder: &Path, work: &Work) -> Result<(IpcChannelSender, IpcChannelReceiver)> {
        let ends = ends(side, &folder.join("server"))?;
        let spin = work.wait == Wait::Spin;
        if work.access == Access::InPlace {
            let (sender, receiver) = ends.memory;
            return Ok((IpcChannelSender::Memory(sender), IpcChannelReceiver::Memory(receiver, spin)));
        }
        let (sender, receiver) = ends.bytes;
        Ok((IpcChannelSender::Bytes(sender), IpcChannelReceiver::Bytes(receiver, spin)))
    }
}

/// Side B makes all ends and sends those of side A through a channel.
fn ends(side: Side, path: &Path) -> Result<ChannelEnds> {
    if side == Side::A {
        let (server, name) = IpcOneShotServer::<ChannelEnds>::new()?;
        rendezvous::publish(path, &name)?;
        return Ok(server.accept()?.1);
    }
    let (bytes_to_a, bytes_from_b) = ipc::bytes_channel()?;
    let (bytes_to_b, bytes_from_a) = ipc::bytes_channel()?;
    let (memory_to_a, memory_from_b) = ipc::channel()?;
    let (memory_to_b, memory_from_a) = ipc::channel()?;
    IpcSender::connect(rendezvous::read_published(path)?)?
        .send(ChannelEnds { bytes: (bytes_to_b, bytes_from_b), memory: (memory_to_b, memory_from_b) })?;
    Ok(ChannelEnds { bytes: (bytes_to_a, bytes_from_a), memory: (memory_to_a, memory_from_a) })
}

/// See the module.
pub(crate) enum IpcChannelSender {
    Bytes(IpcBytesSender),
    Memory(IpcSender<IpcSharedMemory>),
}

impl SendHalf for IpcChannelSender {
    #[inline]
    fn send(&mut self, message: &[u8]) -> Result<()> {
        match self {
            Self::Bytes(sender) => sender.send(message)?,
            Self::Memory(sender) => sender.send(IpcSharedMemory::from_bytes(message))?,
        }
        Ok(())
    }
}

/// See the module.
pub(crate) enum IpcChannelReceiver {
    Bytes(IpcBytesReceiver, bool),
    Memory(IpcReceiver<IpcSharedMemory>, bool),
}

impl ReceiveHalf for IpcChannelReceiver {
    #[inline]
    fn receive(&mut self, check: &mut Check) -> Result<()> {
        match self {
            Self::Bytes(receiver, false) => check.validate(&blocking(receiver.recv())?),
            Self::Bytes(receiver, true) => check.validate(&polling(|| receiver.try_recv())?),
            Self::Memory(receiver, false) => check.validate(&blocking(receiver.recv())?),
            Self::Memory(receiver, true) => check.validate(&polling(|| receiver.try_recv())?),
        }
        Ok(())
    }
}

fn blocking<T>(received: Result<T, IpcError>) -> Result<T> {
    received.map_err(|error| anyhow!("{error:?}"))
}

#[inline]
fn polling<T>(mut receive: impl FnMut() -> Result<T, TryRecvError>) -> Result<T> {
    loop {
        match receive() {
            Err(TryRecvError::Empty) => std::hint::spin_loop(),
            received => return received.map_err(|error| anyhow!("{error:?}")),
        }
    }
}
