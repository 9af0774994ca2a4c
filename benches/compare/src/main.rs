//! narrows beside what others use to send messages between two processes of one machine: README.md.

#![forbid(unsafe_op_in_unsafe_fn)]

mod peers;
mod rendezvous;
mod sized;
#[allow(unsafe_code)] // See there.
mod sys;

use std::time::Duration;

use harness::limits;
use harness::narrows_streams::Narrows;
use harness::{CpuPlacement, Result, Row, Subject, Wait, Work, WorkKind, systems};
use peers::inproc::{RtrbThreads, crossbeam};
use peers::ringfire::Ringfire;
use peers::shmem_ipc::ShmemIpc;
use peers::{bytes, iceoryx2, ipc_channel, ipmpsc, mqueue, seqpacket};
use sized::{SIZES, sized};

fn main() -> Result<()> {
    let subjects = subjects();
    harness::main("compare", &subjects, rows(&subjects))
}

fn subjects() -> Vec<Subject> {
    let mut all = systems![Narrows];
    all.extend(limits::subjects().into_iter().filter(|limit| limit.name == "hand-over"));
    all.extend([sized!(RtrbThreads), crossbeam()]);
    #[cfg(feature = "shaq")]
    all.push({
        use peers::shaq::Shaq;
        sized!(Shaq)
    });
    all.extend([sized!(Ringfire), sized!(ShmemIpc)]);
    all.extend(systems![iceoryx2::Iceoryx2, ipmpsc::Ipmpsc, ipc_channel::IpcChannel]);
    all.extend(systems![
        bytes::UnixPeer,
        bytes::Interprocess,
        seqpacket::SeqPacket,
        bytes::NamedPipe,
        bytes::Tcp
    ]);
    all.extend(systems![mqueue::PosixQueue]);
    #[cfg(feature = "zeromq")]
    all.extend(systems![peers::zeromq::ZeroMq]);
    #[cfg(feature = "nng")]
    all.extend(systems![peers::nng::Nng]);
    #[cfg(feature = "boost")]
    all.push(peers::boost::subject());
    #[cfg(feature = "aeron")]
    all.extend(systems![peers::aeron::Aeron]);
    all
}

/// Every size and way to wait on two CPUs; batches of small messages; both sides on one CPU; pauses: for each system those
/// that it supports.
fn rows(subjects: &[Subject]) -> Vec<Row> {
    let mut works = Vec::new();
    for wait in [Wait::Adaptive, Wait::Spin, Wait::Park] {
        for what in [WorkKind::RoundTrip, WorkKind::OneWay] {
            for size in SIZES {
                let work = Work::new(what, size).wait(wait);
                works.extend([(work, CpuPlacement::Two), (work.in_place(), CpuPlacement::Two)]);
            }
            works.push((Work::new(what, 64).wait(wait), CpuPlacement::One));
        }
        for size in [8, 40, 64] {
            let work = Work::new(WorkKind::OneWay, size).wait(wait).batch(64);
            works.extend([(work, CpuPlacement::Two), (work.in_place(), CpuPlacement::Two)]);
        }
        let sparse = Work::new(WorkKind::RoundTrip, 64).wait(wait);
        works.push((sparse.gap(Duration::from_micros(200)), CpuPlacement::Two));
    }
    let can = |(work, placement): &(Work, CpuPlacement)| {
        let able = subjects.iter().filter(|subject| (subject.supports)(work));
        able.map(|subject| Row { system: subject.name.into(), work: *work, placement: *placement })
            .collect::<Vec<_>>()
    };
    works.iter().flat_map(can).collect()
}
