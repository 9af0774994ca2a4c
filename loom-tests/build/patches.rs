//! Mutants that change the order of steps, which a mutation of a single step cannot do.
//!
//! In a replacement, `ON` is true if this mutant is the one that runs, and `as_is!` hides code from further mutation.

use crate::mutate::Mutant;

struct Patch {
    file: &'static str,
    change: &'static str,
    /// The texts to replace, each of which occurs in the file exactly once, and their replacements.
    edits: &'static [(&'static str, &'static str)],
}

const PATCHES: [Patch; 16] = [
    Patch {
        file: "ring/parking.rs",
        change: "looks before it arms the wait slot, and not after",
        edits: &[
            ("wait_slot.arm();", "let before = ON.then(&look); wait_slot.arm();"),
            ("let found = look();", "let found = before.unwrap_or_else(&look);"),
        ],
    },
    Patch {
        file: "ring/parking.rs",
        change: "wakes the sleeper before it clears the flag",
        edits: &[(
            "match mem.take_flag(flag) {",
            "as_is! { if ON { mem.wake(flag); mem.take_flag(flag); return; } } match mem.take_flag(flag) {",
        )],
    },
    Patch {
        file: "channel/receiver_core.rs",
        change: "checks for the end after the stamps",
        edits: &[(
            "match (self.scan()?, ended, wait) {",
            "match (self.scan()?, if ON { self.ring.ended() } else { ended }, wait) {",
        )],
    },
    Patch {
        file: "channel/receiver_core.rs",
        change: "releases at the next call, and not before this one returns",
        edits: &[(
            "let taken = self.copy(&message, 0, buffer).and_then(|()| self.release(&message));",
            "let taken = self.copy(&message, 0, buffer).and_then(|()| if ON { if let IncomingMessage::Placed(arrival) = message { self.state = ReceiverState::Borrowed(arrival); } Ok(()) } else { self.release(&message) });",
        )],
    },
    Patch {
        file: "ring/producer.rs",
        change: "publishes the last ticket of a batch first",
        edits: &[(
            "for ticket in self.next.ticket..to.ticket {",
            "for ticket in self.next.ticket..to.ticket { let ticket = if ON { to.ticket - 1 - (ticket - self.next.ticket) } else { ticket };",
        )],
    },
    Patch {
        file: "ring/parking.rs",
        change: "force-notifies the sleeper before it clears the flag",
        edits: &[(
            "mem.store_flag(flag, 0);",
            "as_is! { if ON { mem.wake(flag); mem.store_flag(flag, 0); return; } } mem.store_flag(flag, 0);",
        )],
    },
    Patch {
        file: "ring/parking.rs",
        change: "wakes a thread that waits for either before it clears the peer consumer flag",
        edits: &[(
            "mem.store_flag(Flag::PeerConsumer, 0);",
            "as_is! { if ON { mem.wake(Flag::PeerConsumer); mem.store_flag(Flag::PeerConsumer, 0); return; } } mem.store_flag(Flag::PeerConsumer, 0);",
        )],
    },
    Patch {
        file: "ring/close.rs",
        change: "looks for a sleeper before it sets the closed flag",
        edits: &[(
            "mem.store(own, 1, Store::Release);",
            "as_is! { if ON { notify(mem, theirs); mem.store(own, 1, Store::Release); return; } } mem.store(own, 1, Store::Release);",
        )],
    },
    Patch {
        file: "ring/close.rs",
        change: "force-notifies the sleepers before it sets the close reason",
        edits: &[(
            "outgoing.set_close_reason(reason as u64);",
            "as_is! { if ON { force_notify(incoming, Flag::Consumer); force_notify(outgoing, Flag::Producer); outgoing.set_close_reason(reason as u64); return; } } outgoing.set_close_reason(reason as u64);",
        )],
    },
    Patch {
        file: "ring/close.rs",
        change: "calls on_peer_gone before it sets the closed flags",
        edits: &[
            (
                "on_peer_gone(outgoing, incoming, reason);",
                "if !ON { on_peer_gone(outgoing, incoming, reason); }",
            ),
            (
                "outgoing.store(Word::ProducerClosed, 1, Store::Release);",
                "as_is! { if ON { on_peer_gone(outgoing, incoming, reason) } } outgoing.store(Word::ProducerClosed, 1, Store::Release);",
            ),
        ],
    },
    Patch {
        file: "ring/producer.rs",
        change: "looks for a sleeper before it commits",
        edits: &[
            (
                "for ticket in self.next.ticket..to.ticket {",
                "as_is! { if ON { notify(&self.mem, Flag::Consumer); } } for ticket in self.next.ticket..to.ticket {",
            ),
            ("self.next = to;", "self.next = to; if ON { return; }"),
        ],
    },
    Patch {
        file: "ring/oob.rs",
        change: "advances the doorbell before it stores the word",
        edits: &[(
            "self.mem.store(Word::Oob(index), value, Store::Release);",
            "as_is! { if ON { self.mem.store(Word::Doorbell, self.doorbell + 1, Store::Release); } } self.mem.store(Word::Oob(index), value, Store::Release);",
        )],
    },
    Patch {
        file: "channel/receiver_core.rs",
        change: "releases a fragment before it is copied",
        edits: &[(
            "let room = self.partial.room(arrival).map_err(RecvCoreError::OutOfMemory)?;",
            "if ON { self.release_slot(arrival); } let room = self.partial.room(arrival).map_err(RecvCoreError::OutOfMemory)?;",
        )],
    },
    Patch {
        file: "rpc/client/multiplexer.rs",
        change: "promotes the next waiter only if it was the leader",
        edits: &[
            (
                "let (mux, receiver, sender) = (self.mux, self.receiver.take(), self.sender.take());",
                "let (mux, receiver, sender) = (self.mux, self.receiver.take(), self.sender.take()); let led = as_is! { receiver.is_some() };",
            ),
            ("if state.waiters > 0 {", "if state.waiters > 0 && (led || !ON) {"),
        ],
    },
    Patch {
        file: "rpc/server/connection.rs",
        change: "notifies the driver before it sets has_unsent",
        edits: &[(
            "pub fn notify_driver(&self) {",
            "pub fn notify_driver(&self) { as_is! { if ON { self.incoming.notify_self(); self.has_unsent.set(true); return; } }",
        )],
    },
    Patch {
        file: "rpc/server/connection.rs",
        change: "clears has_unsent after it has looked",
        edits: &[
            ("self.connection.has_unsent.set(false);", "if !ON { self.connection.has_unsent.set(false); }"),
            (
                "Ok(queue.position() != before)",
                "as_is! { if ON && !queue.has_unsent() { let sent = queue.position() != before; drop(queue); self.connection.has_unsent.set(false); return Ok(sent); } } Ok(queue.position() != before)",
            ),
        ],
    },
];

/// Applies all patches of a file, each on the line that it replaces, and lists them as mutants. Returns the patched text.
pub(crate) fn apply(file: &str, text: &str, mutants: &mut Vec<Mutant>) -> String {
    let mut patched = text.to_owned();
    for patch in PATCHES.iter().filter(|patch| patch.file == file) {
        let on = format!("crate::mutation::on({})", mutants.len());
        for (from, to) in patch.edits {
            assert_eq!(
                patched.matches(from).count(),
                1,
                "{file}: {from:?} does not occur there exactly once"
            );
            patched =
                patched.replace(from, &to.replace("ON", &on).replace("as_is!", "crate::mutation::as_is!"));
        }
        let (first, _) = patch.edits[0];
        let line = 1 + text.lines().position(|line| line.contains(first)).expect("just found");
        mutants.push(Mutant {
            file: file.to_owned(),
            line,
            function: String::new(),
            change: patch.change.to_owned(),
            label: patch.change.to_owned(),
            text: first.to_owned(),
        });
    }
    patched
}
