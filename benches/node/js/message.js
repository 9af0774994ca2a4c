'use strict';
// The messages, and how each is verified: the same on the Rust side (src/message.rs).
//
//   objects  the template of a size (the runner writes it as JSON, the same file for every system) with an id of its own in each
//            message; the receiver visits all of it: id, lengths of the strings, sum of the numbers
//   bytes    a pattern with the message's number in its first 8 bytes; the receiver compares every byte with its own copy
//
// Both sides make their messages themselves: a reply is not the request sent back.

const fs = require('node:fs');
const path = require('node:path');

const FIRST_ID = 1_000_000_000; // Ids have ten digits each: the size does not change.

class Objects {
  constructor(folder, size) {
    const text = fs.readFileSync(path.join(folder, `object-${size}.json`), 'utf8');
    this.template = JSON.parse(text);
    this.expected = digest(this.template);
  }

  make(number) {
    this.template.id = FIRST_ID + number;
    return this.template;
  }

  check(message, number) {
    if (message.id !== FIRST_ID + number || digest(message) !== this.expected) changed(number);
  }
}

function digest(message) {
  let sum = message.method.length + message.note.length;
  for (const number of message.numbers) sum += number;
  if (message.rows !== undefined) {
    for (const row of message.rows) {
      sum += row.name.length + row.count + row.price;
      for (const tag of row.tags) sum += tag.length;
    }
  }
  return sum;
}

class Bytes {
  // With `room` bytes in front for a transport's header: they are no part of the message.
  constructor(size, room = 0) {
    this.room = room;
    this.whole = Buffer.alloc(room + size);
    this.mine = this.whole.subarray(room);
    for (let i = 0; i < size; i++) this.mine[i] = i * 31 + 7;
    this.mine.fill(0, 0, 8);
    this.expected = Buffer.from(this.mine);
  }

  make(number) {
    this.mine.writeUInt32LE(number, 0);
    return this.mine;
  }

  check(message, number) {
    this.expected.writeUInt32LE(number, 0);
    if (!this.expected.equals(message)) changed(number);
  }
}

function changed(number) {
  throw new Error(`message ${number} did not arrive as it was sent`);
}

module.exports = { Objects, Bytes };
