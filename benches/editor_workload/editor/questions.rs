//! What the backend asks, and what the user makes of it some time later.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use harness::{Result, anyhow, monotonic};

use super::Editor;
use crate::backend::ANSWER;
use crate::item::{HEAD, Item, Kind, Track, stream};
use crate::meter::Meter;

/// A question: when it is to be answered, and which it is.
type Due = (u64, u32, u32);

impl Editor {
    /// Takes pushes until the connection ends, and has them answered in time.
    pub(super) fn questions(&self, meter: &mut Meter) -> Result<()> {
        let (tell, told) = channel();
        thread::scope(|scope| {
            let user = scope.spawn(move || {
                let mut meter = Meter::default();
                self.user(&told, &mut meter).map(|()| meter)
            });
            let taken = self.take_questions(|due| _ = tell.send(due), meter);
            drop(tell);
            meter.merge(&user.join().map_err(|_| anyhow!("the user panicked"))??);
            taken
        })
    }

    fn take_questions(&self, tell: impl Fn(Due), meter: &mut Meter) -> Result<()> {
        let questions = stream(Kind::Question, 0);
        let mut track = Track::new(questions);
        while let Some(push) = self.client.next_push()? {
            let item = match Item::read(&push) {
                Some(item) if item.stream != questions => {
                    Track::new(item.stream).take(&push, |_| None, &mut meter.tally)
                }
                _ => track.take(&push, |_| None, &mut meter.tally),
            };
            if let Some(item) = item {
                tell((item.sent + u64::from(item.number(0)) * 1000, item.stream, item.seq));
            }
        }
        let asked = track.next();
        track.end(asked, &mut meter.tally);
        Ok(())
    }

    /// Answers what is due, until nobody asks any more.
    fn user(&self, told: &Receiver<Due>, meter: &mut Meter) -> Result<()> {
        let mut open: BinaryHeap<Reverse<Due>> = BinaryHeap::new();
        loop {
            let wait = open.peek().map_or(u64::MAX, |next| next.0.0.saturating_sub(monotonic()));
            match told.recv_timeout(Duration::from_nanos(wait.min(1_000_000_000))) {
                Ok(due) => open.push(Reverse(due)),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
            }
            while let Some(Reverse((due, of, seq))) = open.peek().copied() {
                if due > monotonic() {
                    break;
                }
                open.pop();
                self.call(ANSWER, of, seq, &[of, seq], HEAD + 8 + (seq as usize * 7) % 500, meter)?;
                meter.count("questions answered", 1);
            }
        }
    }
}
