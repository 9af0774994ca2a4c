'use strict';
// Shared by both sides: frames on the socket (4 bytes of length, little endian, then JSON), items with a number and a checksum, and
// measurements in the form that the runner reads (recorder.rs).

const fs = require('node:fs');
const path = require('node:path');
const zlib = require('node:zlib');

const folder = process.argv[2];
const plan = JSON.parse(fs.readFileSync(path.join(folder, 'plan.json'), 'utf8'));
const text = fs.readFileSync(path.join(folder, 'text'), 'latin1');

const CHAT = 1;
const TOOL = 2;
const FLOOD = 6;
const QUESTION = 7;
const APPROVAL = 8;
const CONTROL = 11;

// As in item.rs: the kind, then which.
const stream = (kind, which) => kind * 0x10000000 + (which % 0x10000000);
const chatNumber = (which) => which.thread * 0x1000000 + (which.unpaced ? 0x800000 : 0) + which.index * 2;

// The clock that all processes share, in nanoseconds: exact for the first hundred days.
const now = () => Number(process.hrtime.bigint());

// An item of `len` characters of text, numbered, with a checksum; stamped last.
function item(of, seq, len) {
  const at = (of * 7919 + seq * 104729) % text.length;
  let body = text.slice(at, at + len);
  while (body.length < len) body += text.slice(0, len - body.length);
  return { of, seq, crc: zlib.crc32(body, (of ^ seq) >>> 0), body, sent: now() };
}

// Follows one stream: each item must be the next, whole, and as long as it was planned.
class SequenceCheck {
  constructor(of) {
    this.of = of;
    this.next = 0;
    this.missing = new Set();
  }

  take(it, len) {
    validate(it, this.of, len);
    if (it.seq >= this.next) {
      for (let seq = this.next; seq < it.seq; seq++) this.missing.add(seq);
      this.next = it.seq + 1;
    } else if (this.missing.delete(it.seq)) recorder.tally.reordered++;
    else recorder.tally.duplicated++;
  }

  end(count) {
    recorder.tally.lost += this.missing.size + Math.max(0, count - this.next);
  }
}

function validate(it, of, len) {
  recorder.tally.items++;
  recorder.tally.bytes += it.body.length;
  const right = it.of === of && zlib.crc32(it.body, (it.of ^ it.seq) >>> 0) === it.crc;
  if (!right || (len !== undefined && it.body.length !== len)) recorder.tally.corrupt++;
}

const recorder = {
  tally: { items: 0, bytes: 0, lost: 0, duplicated: 0, reordered: 0, corrupt: 0 },
  times: {},
  counts: {},
  faults: [],

  time(name, nanos) {
    const times = (this.times[name] ??= new Map());
    // Three digits, as the histograms of the other side have.
    const unit = 10 ** Math.max(0, Math.floor(Math.log10(Math.max(nanos, 1))) - 3);
    const value = Math.max(1, Math.round(nanos / unit) * unit);
    times.set(value, (times.get(value) ?? 0) + 1);
  },

  count(name, more = 1) {
    this.counts[name] = (this.counts[name] ?? 0) + more;
  },

  reportMeasurements() {
    const times = Object.fromEntries(Object.entries(this.times).map(([name, values]) => [name, [...values]]));
    const { user, system } = process.cpuUsage();
    const { tally, counts, faults } = this;
    report({ Measured: { times, tally, counts, faults, cpu: (user + system) / 1e6 } });
  },
};

// A line for the runner; synchronous, so that it is out when the process ends.
function report(line) {
  const bytes = Buffer.from(`${JSON.stringify(line)}\n`);
  for (let at = 0; at < bytes.length; ) {
    try {
      at += fs.writeSync(1, bytes, at);
    } catch (error) {
      if (error.code !== 'EAGAIN') throw error;
    }
  }
}

// Sends; resolves when the socket accepts more.
function send(socket, message) {
  const body = JSON.stringify(message);
  const length = Buffer.byteLength(body);
  const frame = Buffer.allocUnsafe(4 + length);
  frame.writeUInt32LE(length, 0);
  frame.utf8Write(body, 4, length);
  if (socket.write(frame)) return undefined;
  return new Promise((resolve) => {
    const done = () => {
      socket.off('drain', done);
      socket.off('close', done);
      resolve();
    };
    socket.on('drain', done);
    socket.on('close', done);
  });
}

// Splits the received bytes into messages.
function receive(socket, deliver) {
  let begun = [];
  let have = 0;
  let wanted = 4;
  socket.on('data', (chunk) => {
    begun.push(chunk);
    have += chunk.length;
    if (have < wanted) return;
    let bytes = begun.length === 1 ? chunk : Buffer.concat(begun, have);
    wanted = 4;
    while (bytes.length >= wanted) {
      if (wanted === 4) {
        wanted = 4 + bytes.readUInt32LE(0);
        if (bytes.length < wanted) break;
      }
      const message = JSON.parse(bytes.utf8Slice(4, wanted));
      bytes = bytes.subarray(wanted);
      wanted = 4;
      deliver(message);
    }
    begun = bytes.length > 0 ? [bytes] : [];
    have = bytes.length;
  });
}

// A result in fragments, as in backend.rs.
function fragments(len) {
  const PIECE = 65536 - 37;
  const found = [];
  for (let at = 0; at < len; at += PIECE) found.push(Math.max(20, Math.min(PIECE, len - at)));
  return found;
}

const pause = (millis) => new Promise((resolve) => setTimeout(resolve, millis));

// The runner closes this process's input when it is done, or exits.
function whenInputCloses(act) {
  process.stdin.on('end', act);
  process.stdin.on('close', act);
  process.stdin.resume();
}

module.exports = {
  plan, stream, chatNumber, now, item, SequenceCheck, validate, recorder, report, send, receive, fragments, pause, whenInputCloses,
  CHAT, TOOL, FLOOD, QUESTION, APPROVAL, CONTROL,
};
