//! Copy in plus copy out, by one thread: what a message costs in memory traffic alone, without a second CPU.
//!
//! Each message is copied whole into memory of the kind that two processes share, and whole out of it into a buffer
//! that is checked as everywhere.

use std::time::Instant;

use anyhow::Result;

use super::hand_over::Mailboxes;
use crate::driver::Measurement;
use crate::record::SideReport;
use crate::source::{Check, Source};
use crate::system::{Access, Job, Side, Wait, Work, WorkKind};
use crate::timing::UsageMeter;

pub(crate) struct CopyInOut;

impl Measurement for CopyInOut {
    const NAME: &'static str = "copy-in-out";
    const VERSION: &'static str = "";

    fn supports(work: &Work) -> bool {
        let what = work.kind == WorkKind::OneWay && work.batch == 1;
        what && work.wait == Wait::Spin && work.access == Access::Copy
    }

    fn run(job: &Job) -> Result<SideReport> {
        if job.side == Side::B {
            return Ok(SideReport::default());
        }
        let size = job.work.size;
        let (boxes, mut out) = (Mailboxes::open(Side::A, &job.folder, size)?, vec![1; size]);
        let at = boxes.payload(0);
        let (mut source, mut check) = (Source::new(size), Check::new(size));
        let stride = (65_536 / size.max(1)).clamp(1, 1024);
        let mut burst = || -> Result<()> {
            for _ in 0..stride {
                boxes.bytes.write(at, source.message());
                out.copy_from_slice(boxes.bytes.lend(at, size));
                check.validate(&out);
                check.take_result()?;
            }
            Ok(())
        };
        let began = Instant::now();
        while began.elapsed() < job.warm {
            burst()?;
        }
        let (meter, began, mut count) = (UsageMeter::start(false), Instant::now(), 0);
        while began.elapsed() < job.time {
            burst()?;
            count += stride as u64;
        }
        Ok(meter.stop(count))
    }
}
