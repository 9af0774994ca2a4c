//! iceoryx2: zero-copy publish-subscribe over pools in shared memory.
//!
//! Configuration: as its benchmark `publish-subscribe`: one publisher and one subscriber of slices for each direction,
//! history of 0, `loan_slice_uninit` and `receive`; but without overflow and with `RetryUntilDelivered`, since no message
//! may be lost, and with room for as many messages as the others get. `Spin` polls `receive`, as that benchmark does.
//! `Park` is an event service beside it, as in its example `event_based_communication`: the sender notifies after each
//! message, the receiver waits for the event when there is nothing to receive.
//! Better at than narrows: many publishers and subscribers, discovery by name, the payload never moves, other languages.
//! Cannot: spin before it sleeps, batches, sleep for room (it backs off), wake a sleeper when its peer died.

use std::path::Path as FilePath;
use std::time::Duration;

use ::iceoryx2::port::listener::Listener;
use ::iceoryx2::port::notifier::Notifier;
use ::iceoryx2::port::publisher::Publisher;
use ::iceoryx2::port::subscriber::Subscriber;
use ::iceoryx2::prelude::*;
use harness::{Check, ReceiveBuffer, ReceiveHalf, Result, SendHalf, Side, System, Wait, Work, ensure};

use crate::rendezvous;

/// Longest sleep: once in some hundred short rows the wait without a bound was not woken, and the row hung.
const TIMEOUT: Duration = Duration::from_secs(1);

/// See the module.
pub(crate) struct Iceoryx2;

impl System for Iceoryx2 {
    const NAME: &'static str = "iceoryx2";
    const VERSION: &'static str = "0.10.0";
    type Sender = Iceoryx2Sender;
    type Receiver = Iceoryx2Receiver;

    fn supports(work: &Work) -> bool {
        work.wait != Wait::Adaptive && work.batch == 1
    }

    fn open(side: Side, folder: &FilePath, work: &Work) -> Result<(Iceoryx2Sender, Iceoryx2Receiver)> {
        set_log_level(LogLevel::Error);
        let mut config = Config::default();
        config.global.set_root_path(&Path::new(folder.to_string_lossy().as_bytes())?);
        let node = NodeBuilder::new().config(&config).create::<ipc::Service>()?;
        let [out, into] = rendezvous::ways(side, folder);
        let wakes = work.wait == Wait::Park;
        let sender = Iceoryx2Sender::open(&node, &out, work, wakes)?;
        let receiver = Iceoryx2Receiver::open(&node, &into, work, wakes)?;
        rendezvous::announce(&out)?;
        rendezvous::await_announced(&into)?;
        // A subscriber finds its publisher when it looks; without, the publisher drops what its buffer cannot hold.
        _ = receiver.subscriber.has_samples()?;
        rendezvous::announce(&into.with_extension("found"))?;
        rendezvous::await_announced(&out.with_extension("found"))?;
        Ok((sender, receiver))
    }
}

type Directions = ::iceoryx2::service::port_factory::publish_subscribe::PortFactory<ipc::Service, [u8], ()>;
type Events = ::iceoryx2::service::port_factory::event::PortFactory<ipc::Service>;

fn service(node: &Node<ipc::Service>, way: &FilePath, work: &Work) -> Result<Directions> {
    let name = ServiceName::new(&way.to_string_lossy())?;
    let service = node
        .service_builder(&name)
        .publish_subscribe::<[u8]>()
        .max_publishers(1)
        .max_subscribers(1)
        .history_size(0)
        .subscriber_max_buffer_size(rendezvous::slots(work.size))
        .subscriber_max_borrowed_samples(1)
        .enable_safe_overflow(false)
        .open_or_create()?;
    Ok(service)
}

fn events(node: &Node<ipc::Service>, way: &FilePath) -> Result<Events> {
    Ok(node.service_builder(&ServiceName::new(&way.to_string_lossy())?).event().open_or_create()?)
}

/// See the module.
pub(crate) struct Iceoryx2Sender {
    publisher: Publisher<ipc::Service, [u8], ()>,
    notifier: Option<Notifier<ipc::Service>>,
}

impl Iceoryx2Sender {
    fn open(node: &Node<ipc::Service>, way: &FilePath, work: &Work, wakes: bool) -> Result<Self> {
        let publisher = service(node, way, work)?
            .publisher_builder()
            .initial_max_slice_len(work.size)
            .max_loaned_samples(1)
            .backpressure_strategy(BackpressureStrategy::RetryUntilDelivered)
            .create()?;
        let notifier = if wakes { Some(events(node, way)?.notifier_builder().create()?) } else { None };
        Ok(Self { publisher, notifier })
    }
}

impl SendHalf for Iceoryx2Sender {
    #[inline]
    fn send(&mut self, message: &[u8]) -> Result<()> {
        let recipients = self.publisher.loan_slice_uninit(message.len())?.write_from_slice(message).send()?;
        ensure!(recipients == 1, "no subscriber received it");
        if let Some(notifier) = &self.notifier {
            notifier.notify()?;
        }
        Ok(())
    }
}

/// See the module.
pub(crate) struct Iceoryx2Receiver {
    subscriber: Subscriber<ipc::Service, [u8], ()>,
    listener: Option<Listener<ipc::Service>>,
    buffer: ReceiveBuffer,
}

impl Iceoryx2Receiver {
    fn open(node: &Node<ipc::Service>, way: &FilePath, work: &Work, wakes: bool) -> Result<Self> {
        let subscriber = service(node, way, work)?.subscriber_builder().create()?;
        let listener = if wakes { Some(events(node, way)?.listener_builder().create()?) } else { None };
        let buffer = ReceiveBuffer::new(work);
        Ok(Self { subscriber, listener, buffer })
    }
}

impl ReceiveHalf for Iceoryx2Receiver {
    #[inline]
    fn receive(&mut self, check: &mut Check) -> Result<()> {
        loop {
            if let Some(sample) = self.subscriber.receive()? {
                self.buffer.validate(&sample, check);
                return Ok(());
            }
            match &self.listener {
                Some(listener) => _ = listener.timed_wait(|_| (), TIMEOUT)?,
                None => std::hint::spin_loop(),
            }
        }
    }
}
