'use strict';
// A Unix socket with frames: 4 bytes of length (little endian), then the message. Objects travel as JSON.
//
// For speed, as Node's documentation recommends: one write for header and message, no copy of what one chunk holds whole,
// many small messages corked into one writev, and reads into one buffer kept for it (`onread`) at the side that connects.

const { Objects, Bytes } = require('./message.js');

const HEADER = 4;
const CORKED = 64; // Messages in one writev, where many are under way.

class Framed {
  constructor(config, socket) {
    this.config = config;
    this.socket = socket;
    this.begun = Buffer.alloc(64 << 10); // A message of which a part has come.
    this.have = 0;
    this.free = []; // Frames of raw bytes that the socket has done with.
  }

  control(value) {
    this.socket.write(frame(JSON.stringify(value)));
  }

  prepare(size) {
    this.objects = this.config.kind === 'objects' ? new Objects(this.config.folder, size) : undefined;
    if (this.objects === undefined) {
      this.bytes = new Bytes(size, HEADER);
      this.bytes.whole.writeUInt32LE(size, 0);
    }
    this.free = [];
    this.corked = size <= 4096;
  }

  send(number) {
    if (this.objects !== undefined) {
      this.socket.write(frame(JSON.stringify(this.objects.make(number))));
    } else {
      this.bytes.make(number);
      this.socket.write(this.bytes.whole); // The reply shows that it was read: it can be written again.
    }
  }

  check(message, number) {
    if (this.objects !== undefined) this.objects.check(JSON.parse(message), number);
    else this.bytes.check(message, number);
  }

  sendMany(count) {
    let number = 0;
    const some = () => {
      while (number < count) {
        const end = this.corked ? Math.min(number + CORKED, count) : number + 1;
        let more = true;
        if (this.corked) this.socket.cork();
        while (number < end) more = this.sendOne(number++);
        if (this.corked) this.socket.uncork();
        if (more || number === count) continue;
        this.socket.once('drain', some);
        return;
      }
    };
    some();
  }

  // One of many: its buffer must stay until the socket has written it.
  sendOne(number) {
    if (this.objects !== undefined) return this.socket.write(frame(JSON.stringify(this.objects.make(number))));
    const buffer = this.free.pop() ?? Buffer.from(this.bytes.whole);
    buffer.writeUInt32LE(number, HEADER);
    return this.socket.write(buffer, () => this.free.push(buffer));
  }

  // Takes a chunk: whole messages are lent where they are, parts are put together.
  feed(chunk) {
    let at = this.have > 0 ? this.complete(chunk) : 0;
    while (this.have === 0 && chunk.length - at >= HEADER) {
      const end = at + HEADER + chunk.readUInt32LE(at);
      if (end > chunk.length) break;
      this.deliver(chunk.subarray(at + HEADER, end));
      at = end;
    }
    if (at < chunk.length) this.keep(chunk, at, chunk.length);
  }

  // Takes what the begun message lacks from the front of the chunk, and returns how much that was.
  complete(chunk) {
    let at = 0;
    if (this.have < HEADER) {
      at = this.keep(chunk, 0, Math.min(HEADER - this.have, chunk.length));
      if (this.have < HEADER) return at;
    }
    const total = HEADER + this.begun.readUInt32LE(0);
    at = this.keep(chunk, at, Math.min(at + total - this.have, chunk.length));
    if (this.have === total) {
      this.have = 0;
      this.deliver(this.begun.subarray(HEADER, total));
    }
    return at;
  }

  keep(chunk, from, to) {
    const first = this.have === 0 && to - from >= HEADER ? HEADER + chunk.readUInt32LE(from) : 0;
    const needed = Math.max(first, this.have + to - from);
    if (needed > this.begun.length) {
      const larger = Buffer.alloc(Math.max(needed, 2 * this.begun.length));
      this.begun.copy(larger, 0, 0, this.have);
      this.begun = larger;
    }
    this.have += chunk.copy(this.begun, this.have, from, to);
    return to;
  }

  deliver(message) {
    this.onmessage(this.idle ? JSON.parse(message) : message);
  }
}

function frame(text) {
  const length = Buffer.byteLength(text);
  const buffer = Buffer.allocUnsafe(HEADER + length);
  buffer.writeUInt32LE(length, 0);
  buffer.utf8Write(text, HEADER, length);
  return buffer;
}

module.exports = { Framed };
