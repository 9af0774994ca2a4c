//! Aeron IPC: log buffers in shared memory, kept by a media driver.
//!
//! Configuration: `aeron:ipc` with an exclusive publication for each direction, as in the benchmark `ping_pong_ipc` and the
//! example `embedded_exclusive_ipc_throughput` of rusteron (the C client and driver); the driver runs in side B's process,
//! in one thread that backs off (two CPUs have no core to give away), on any CPU; terms as long as by default, but their
//! memory touched beforehand; frames as long as Aeron has them. `InPlace` writes into a claim and checks in the poll's callback; `Copy` offers, and polls many frames
//! by one call, copying them out, which also puts long messages together. `Spin` polls; `Adaptive` is Aeron's backoff:
//! 10 spins, 20 yields, then sleeps from 1 us to 1 ms. Better at than narrows: many publishers and subscribers of one
//! stream, networks, archives, counters for everything. Cannot: be woken (so no `Park`), do without the driver,
//! carry more than an eighth of a term (16 MiB at most; rows end at 1 MiB). The driver's CPU counts: it is needed.

use std::path::Path;
use std::rc::Rc;
use std::thread;
use std::time::Duration;

use harness::{
    Access, Check, ReceiveHalf, Result, SendHalf, Side, System, Wait, Work, anyhow, bail, ensure, retry,
};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use rusteron_client::{
    AERON_IPC_STREAM, Aeron as Client, AeronCError, AeronContext, AeronExclusivePublication, AeronImage,
    AeronSubscription, Handlers, IntoCString,
};
use rusteron_media_driver::bindings::aeron_threading_mode_t;
use rusteron_media_driver::testing::EmbeddedDriver;

use crate::rendezvous;

/// See the module.
pub(crate) struct Aeron;

/// The calling thread.
const THIS: Pid = Pid::from_raw(0);
/// The longest that Aeron allows.
const FRAME: usize = 65504;
/// Before the payload of each.
const HEADER: usize = 32;
/// Frames that one poll takes at most.
const MOST: usize = 256;
const TIMEOUT: Duration = Duration::from_secs(10);

impl System for Aeron {
    const NAME: &'static str = "aeron-ipc";
    const VERSION: &'static str = "by rusteron 0.2.16";
    type Sender = AeronSender;
    type Receiver = AeronReceiver;

    fn supports(work: &Work) -> bool {
        let fits = match work.access {
            Access::Copy => work.size <= 1 << 20,
            Access::InPlace => work.size <= FRAME - HEADER,
        };
        fits && work.wait != Wait::Park && work.batch == 1
    }

    fn open(side: Side, folder: &Path, work: &Work) -> Result<(AeronSender, AeronReceiver)> {
        let path = folder.join("driver");
        let driver = if side == Side::B { Some(driver(folder)?) } else { None };
        if let Some(driver) = &driver {
            rendezvous::publish(&path, driver.dir())?;
        }
        let client = connect(&rendezvous::read_published(&path)?).map_err(to_error)?;
        let [out, into] = if side == Side::A { [1001, 1002] } else { [1002, 1001] };
        let publication = client
            .async_add_exclusive_publication(AERON_IPC_STREAM, out)
            .and_then(|it| it.poll_blocking(TIMEOUT))
            .map_err(to_error)?;
        let subscription = client
            .async_add_subscription(AERON_IPC_STREAM, into, Handlers::NONE, Handlers::NONE)
            .and_then(|it| it.poll_blocking(TIMEOUT))
            .map_err(to_error)?;
        let image = retry(|| {
            let image = subscription.image_at_index(0).filter(|_| publication.is_connected());
            image.ok_or("the other side is missing")
        })?;
        let in_place = work.access == Access::InPlace;
        let wait = BackoffIdle { sleeps: work.wait == Wait::Adaptive, tries: 0 };
        let base = Rc::new(AeronBase { _client: client, _driver: driver });
        let sender = AeronSender { publication, in_place, wait, _base: base.clone() };
        let (size, held) = (work.size, Vec::with_capacity(2 * MOST * FRAME));
        Ok((
            sender,
            AeronReceiver {
                image,
                _subscription: subscription,
                size,
                in_place,
                held,
                at: 0,
                wait,
                _base: base,
            },
        ))
    }
}

fn driver(folder: &Path) -> Result<EmbeddedDriver> {
    // Its thread inherits where this one may run; it shall not have to share the CPU of side B.
    let pinned = sched_getaffinity(THIS)?;
    let mut anywhere = CpuSet::new();
    (0..CpuSet::count()).try_for_each(|cpu| anywhere.set(cpu))?;
    sched_setaffinity(THIS, &anywhere)?;
    let driver = EmbeddedDriver::launch_with(|context| {
        context.set_dir(&folder.join("aeron").to_string_lossy().into_c_string())?;
        context.set_threading_mode(aeron_threading_mode_t::AERON_THREADING_MODE_SHARED)?;
        context.set_shared_idle_strategy(c"backoff")?;
        context.set_ipc_mtu_length(FRAME)?;
        context.set_term_buffer_sparse_file(false)?;
        Ok(())
    });
    sched_setaffinity(THIS, &pinned)?;
    driver.map_err(to_error)
}

fn connect(folder: &str) -> Result<Client, AeronCError> {
    let context = AeronContext::new()?;
    context.set_dir(&folder.into_c_string())?;
    context.set_pre_touch_mapped_memory(true)?;
    let client = Client::new(&context)?;
    client.start()?;
    Ok(client)
}

fn to_error(error: impl std::fmt::Display) -> harness::Error {
    anyhow!("{error}")
}

/// The client and its driver, which both halves need: dropped last, the client before the driver.
struct AeronBase {
    _client: Client,
    _driver: Option<EmbeddedDriver>,
}

/// Aeron's `BackoffIdleStrategy` with its defaults, or spinning.
#[derive(Clone, Copy)]
struct BackoffIdle {
    sleeps: bool,
    tries: u32,
}

impl BackoffIdle {
    #[inline]
    fn once(&mut self) {
        self.tries = self.tries.saturating_add(1);
        match self.tries {
            tries if tries <= 10 || !self.sleeps => std::hint::spin_loop(),
            tries if tries <= 30 => thread::yield_now(),
            tries => {
                thread::sleep(Duration::from_micros(1 << (tries - 31).min(10)).min(Duration::from_millis(1)))
            }
        }
    }
}

/// See the module.
pub(crate) struct AeronSender {
    publication: AeronExclusivePublication,
    in_place: bool,
    wait: BackoffIdle,
    _base: Rc<AeronBase>,
}

impl SendHalf for AeronSender {
    #[inline]
    fn send(&mut self, message: &[u8]) -> Result<()> {
        self.wait.tries = 0;
        loop {
            let sent = if self.in_place {
                match self.publication.try_claim_owned(message.len()) {
                    Ok(mut claim) => {
                        claim.data().copy_from_slice(message);
                        return claim.commit().map(|_| ()).map_err(to_error);
                    }
                    Err(error) => Err(error),
                }
            } else {
                self.publication.offer(message)
            };
            match sent {
                Ok(_) => return Ok(()),
                Err(error) if error.is_retryable() => self.wait.once(),
                Err(error) => bail!("{error}"),
            }
        }
    }
}

impl Drop for AeronSender {
    /// The other side reads the last message before the driver ends.
    fn drop(&mut self) {
        thread::sleep(Duration::from_millis(50));
    }
}

/// See the module.
pub(crate) struct AeronReceiver {
    image: AeronImage,
    _subscription: AeronSubscription,
    size: usize,
    in_place: bool,
    /// Copied out, one message after the other; those before `at` have been checked.
    held: Vec<u8>,
    at: usize,
    wait: BackoffIdle,
    _base: Rc<AeronBase>,
}

impl AeronReceiver {
    /// Polls until a whole message is there.
    fn more(&mut self) -> Result<()> {
        self.held.drain(..self.at);
        self.at = 0;
        self.wait.tries = 0;
        while self.held.len() < self.size {
            let held = &mut self.held;
            let came =
                self.image.poll_fn(|bytes, _| held.extend_from_slice(bytes), MOST).map_err(to_error)?;
            if came == 0 {
                ensure!(!self.image.is_closed(), "the other side has gone");
                self.wait.once();
            }
        }
        Ok(())
    }
}

impl ReceiveHalf for AeronReceiver {
    #[inline]
    fn receive(&mut self, check: &mut Check) -> Result<()> {
        if self.in_place {
            self.wait.tries = 0;
            while self.image.poll_fn(|bytes, _| check.validate(bytes), 1).map_err(to_error)? == 0 {
                self.wait.once();
            }
            return Ok(());
        }
        if self.held.len() - self.at < self.size {
            self.more()?;
        }
        let start = self.at;
        self.at += self.size;
        check.validate(&self.held[start..self.at]);
        Ok(())
    }
}
