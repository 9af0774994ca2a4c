//! The questions of the backend, and the user's answers some time later.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use harness::{Result, anyhow, monotonic};

use super::Editor;
use crate::backend::ANSWER;
use crate::item::{HEAD, Item, SequenceCheck, StreamKind, stream};
use crate::recorder::Recorder;

/// A question: when it is to be answered, its stream and its number.
type Due = (u64, u32, u32);

impl Editor {
    /// Receives pushes until the connection ends, and has them answered when they are due.
    pub(super) fn questions(&self, recorder: &mut Recorder) -> Result<()> {
        let (sender, questions) = channel();
        thread::scope(|scope| {
            let user = scope.spawn(move || {
                let mut recorder = Recorder::default();
                self.user(&questions, &mut recorder).map(|()| recorder)
            });
            let taken = self.take_questions(|due| _ = sender.send(due), recorder);
            drop(sender);
            recorder.merge(&user.join().map_err(|_| anyhow!("the user panicked"))??);
            taken
        })
    }

    fn take_questions(&self, deliver: impl Fn(Due), recorder: &mut Recorder) -> Result<()> {
        let questions = stream(StreamKind::Question, 0);
        let mut track = SequenceCheck::new(questions);
        while let Some(push) = self.client.next_push()? {
            let item = match Item::read(&push) {
                Some(item) if item.stream != questions => {
                    SequenceCheck::new(item.stream).take(&push, |_| None, &mut recorder.tally)
                }
                _ => track.take(&push, |_| None, &mut recorder.tally),
            };
            if let Some(item) = item {
                deliver((item.sent + u64::from(item.number(0)) * 1000, item.stream, item.seq));
            }
        }
        let asked = track.next();
        track.end(asked, &mut recorder.tally);
        Ok(())
    }

    /// Answers each question when it is due, until the connection ends.
    fn user(&self, questions: &Receiver<Due>, recorder: &mut Recorder) -> Result<()> {
        let mut open: BinaryHeap<Reverse<Due>> = BinaryHeap::new();
        loop {
            let wait = open.peek().map_or(u64::MAX, |next| next.0.0.saturating_sub(monotonic()));
            match questions.recv_timeout(Duration::from_nanos(wait.min(1_000_000_000))) {
                Ok(due) => open.push(Reverse(due)),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
            }
            while let Some(Reverse((due, of, seq))) = open.peek().copied() {
                if due > monotonic() {
                    break;
                }
                open.pop();
                self.call(ANSWER, of, seq, &[of, seq], HEAD + 8 + (seq as usize * 7) % 500, recorder)?;
                recorder.count("questions answered", 1);
            }
        }
    }
}
