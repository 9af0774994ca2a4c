//! Systems whose messages are of one type: one instance for each size, chosen once for each row.

/// Sizes of the rows of this benchmark.
pub(crate) const SIZES: [usize; 8] = [8, 40, 64, 104, 1 << 10, 64 << 10, 1 << 20, 16 << 20];

/// A subject for `System<N>`: the row's size picks the instance, so nothing is dispatched while it runs.
macro_rules! sized {
    ($system:ident) => {{
        use harness::{Job, Result, SideReport, Subject, System, Work, bail};
        fn run(job: &Job) -> Result<SideReport> {
            $crate::sized::with_size!(
                job.work.size,
                N,
                (Subject::of::<$system<N>>().run)(job),
                bail!("no such size")
            )
        }
        fn supports(work: &Work) -> bool {
            $crate::sized::with_size!(work.size, N, <$system<N>>::supports(work), false)
        }
        Subject { supports, run, ..Subject::of::<$system<8>>() }
    }};
}

/// Evaluates an expression with the constant of that size.
macro_rules! with_size {
    ($size:expr, $n:ident, $then:expr, $otherwise:expr) => {
        $crate::sized::with_size!(@ $size, $n, $then, $otherwise,
            8, 40, 64, 104, 0x400, 0x1_0000, 0x10_0000, 0x100_0000)
    };
    (@ $size:expr, $n:ident, $then:expr, $otherwise:expr, $($one:literal),*) => {
        match $size {
            $($one => {
                const $n: usize = $one;
                $then
            })*
            _ => $otherwise,
        }
    };
}

pub(crate) use {sized, with_size};
