'use strict';
// Channels that carry values and serialise by themselves: child_process IPC (JSON or advanced) and postMessage between threads.
//
// JSON carries no bytes, so raw bytes travel as base64 there, which is the shortest that it can.

const { Objects, Bytes } = require('./message.js');

// The interface of every transport that calls back, for the loops of the driver and of the echo:
//   control(value), onmessage(value)   between measurements; a value is a small object
//   prepare(size)                      makes the messages of a size
//   send(number), check(value, number) one message
//   sendMany(count)                    many, as fast as the transport takes them
class Channel {
  // `post(value, done)` sends; it returns false once too much is under way, and calls `done` if given one.
  constructor(config, post) {
    this.config = config;
    this.post = post;
    this.base64 = config.kind === 'bytes' && config.system === 'ipc-json';
  }

  control(value) {
    this.post(value);
  }

  prepare(size) {
    this.work = this.config.kind === 'objects' ? new Objects(this.config.folder, size) : new Bytes(size);
  }

  send(number) {
    return this.post(this.value(number));
  }

  check(value, number) {
    this.work.check(this.base64 ? Buffer.from(value.data, 'base64') : value, number);
  }

  sendMany(count) {
    let number = 0;
    const some = () => {
      while (number < count) {
        if (this.send(number++) !== false || number === count) continue;
        this.post(this.value(number++), some); // Goes on when this one, behind all the others, has left.
        return;
      }
    };
    some();
  }

  value(number) {
    const made = this.work.make(number);
    return this.base64 ? { data: made.toString('base64') } : made;
  }
}

// One end of a child's IPC channel: `end` is the child's handle in the parent, and `process` in the child.
function ipc(config, end) {
  const channel = new Channel(config, (value, done) => end.send(value, undefined, undefined, done));
  end.on('message', (value) => channel.onmessage(value));
  return channel;
}

// One end of a MessageChannel: it has no limit on what is under way, so it never asks to wait.
function port(config, end) {
  const channel = new Channel(config, (value) => {
    end.postMessage(value);
    return true;
  });
  end.on('message', (value) => channel.onmessage(value));
  return channel;
}

module.exports = { ipc, port };
