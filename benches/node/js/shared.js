'use strict';
// Two threads of one process with a ring in each direction in a SharedArrayBuffer; waiting by Atomics.wait and notify, or by looking
// again and again. It is a bound for Node, not a way between processes: a SharedArrayBuffer cannot leave its process.
//
//   ctl    head, tail, "someone waits at head", "someone waits at tail", each in a cache line of its own
//   slots  the length, then the message
//
// No notify is sent without a waiter: a waiter sets its flag before it looks for the last time, and a publisher reads the flag afterwards.

const { Objects, Bytes } = require('./message.js');

const LINE = 16; // Numbers of 4 bytes in a cache line.
const HEAD = 0;
const TAIL = LINE;
const AT_HEAD = 2 * LINE;
const AT_TAIL = 3 * LINE;
const CTL = 4 * LINE * 4;
const HEADER = 8; // Not 4: V8 copies into shared memory byte by byte unless both addresses are aligned alike.

// Rooms for a message of `size` each: as many as keep a ring within 4 MiB, from 4 to 256.
function shape(size) {
  const slot = HEADER + Math.max(4096, size + 64);
  const slots = Math.min(256, Math.max(4, 1 << Math.floor(Math.log2((4 << 20) / slot))));
  return { slot: (slot + 63) & ~63, slots };
}

function allocate(size) {
  const { slot, slots } = shape(size);
  return new SharedArrayBuffer(2 * (CTL + slot * slots));
}

class Ring {
  constructor(memory, which, size, spin) {
    const { slot, slots } = shape(size);
    const from = which * (CTL + slot * slots);
    this.ctl = new Int32Array(memory, from, CTL / 4);
    this.bytes = Buffer.from(memory, from + CTL, slot * slots);
    this.slot = slot;
    this.slots = slots;
    this.spin = spin;
    this.own = 0; // The head of the sender, the tail of the receiver.
    this.seen = 0; // The other's number when last looked at.
  }

  // Where the next message may be written; waits for room.
  room() {
    while (((this.own - this.seen) | 0) === this.slots) this.seen = this.other(TAIL, AT_TAIL);
    return (this.own & (this.slots - 1)) * this.slot;
  }

  publish(at, length) {
    this.bytes.writeUInt32LE(length, at);
    this.advance(HEAD, AT_HEAD);
  }

  // Where the next message is; waits for it.
  message() {
    while (this.seen === this.own) this.seen = this.other(HEAD, AT_HEAD);
    return (this.own & (this.slots - 1)) * this.slot;
  }

  release() {
    this.advance(TAIL, AT_TAIL);
  }

  advance(mine, waiting) {
    this.own = (this.own + 1) | 0;
    Atomics.store(this.ctl, mine, this.own);
    if (!this.spin && Atomics.load(this.ctl, waiting) !== 0) Atomics.notify(this.ctl, mine, 1);
  }

  // The other's number, once it is not what was seen.
  other(theirs, waiting) {
    let now = Atomics.load(this.ctl, theirs);
    if (now !== this.seen) return now;
    if (this.spin) {
      do now = Atomics.load(this.ctl, theirs);
      while (now === this.seen);
      return now;
    }
    Atomics.store(this.ctl, waiting, 1);
    while ((now = Atomics.load(this.ctl, theirs)) === this.seen) Atomics.wait(this.ctl, theirs, now);
    Atomics.store(this.ctl, waiting, 0);
    return now;
  }
}

// One thread's end: it sends by the ring `side` and receives by the other. All its calls block.
class Shared {
  constructor(config, memory, side) {
    const spin = config.system === 'shared-spin';
    this.config = config;
    this.out = new Ring(memory, side, config.largest, spin);
    this.in = new Ring(memory, 1 - side, config.largest, spin);
  }

  prepare(size) {
    this.objects = this.config.kind === 'objects' ? new Objects(this.config.folder, size) : undefined;
    if (this.objects === undefined) this.bytes = new Bytes(size);
  }

  control(value) {
    this.write(JSON.stringify(value));
  }

  // A value that was sent by `control`.
  receiveControl() {
    const at = this.in.message();
    const value = JSON.parse(this.text(at));
    this.in.release();
    return value;
  }

  send(number) {
    if (this.objects !== undefined) return this.write(JSON.stringify(this.objects.make(number)));
    const message = this.bytes.make(number);
    const at = this.out.room();
    message.copy(this.out.bytes, at + HEADER);
    this.out.publish(at, message.length);
  }

  // Takes one message, verified where it stands, or parsed out of it.
  receive(number) {
    const at = this.in.message();
    if (this.objects !== undefined) {
      this.objects.check(JSON.parse(this.text(at)), number);
    } else {
      const from = at + HEADER;
      this.bytes.check(this.in.bytes.subarray(from, from + this.in.bytes.readUInt32LE(at)), number);
    }
    this.in.release();
  }

  write(text) {
    const at = this.out.room();
    this.out.publish(at, this.out.bytes.utf8Write(text, at + HEADER, this.out.slot - HEADER));
  }

  text(at) {
    const from = at + HEADER;
    return this.in.bytes.utf8Slice(from, from + this.in.bytes.readUInt32LE(at));
  }
}

module.exports = { Shared, allocate };
