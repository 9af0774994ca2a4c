'use strict';
// Side B: verifies each message, answers each of the `trips` with a message of its own and all of a `rate` with one word, and reports
// its CPU time. It ends when side A does.

const fs = require('node:fs');
const net = require('node:net');
const path = require('node:path');
const { isMainThread, parentPort, workerData } = require('node:worker_threads');
const { ipc, port } = require('./channel.js');
const { Framed } = require('./socket.js');
const { Shared } = require('./shared.js');

const config = isMainThread ? JSON.parse(process.argv[2]) : workerData.config;

if (config.system.startsWith('shared')) guarded();
else if (config.system === 'worker') calledBack(port(config, parentPort));
else if (config.system === 'socket') connect();
else calledBack(ipc(config, process));

function connect() {
  const buffer = Buffer.alloc(1 << 20);
  const callback = (length) => {
    end.feed(buffer.subarray(0, length));
    return true;
  };
  const socket = net.connect({ path: path.join(config.folder, 'socket'), onread: { buffer, callback } });
  const end = new Framed(config, socket);
  calledBack(end);
}

function calledBack(end) {
  let phase;
  let number = 0;
  let cpu;
  end.idle = true;
  end.onmessage = (message) => {
    if (end.idle) {
      if (message.what === undefined) return end.control({ cpu: used(cpu) });
      [phase, number, end.idle] = [message, 0, false];
      end.prepare(phase.size);
      cpu = process.cpuUsage();
      return end.control({});
    }
    end.check(message, number);
    if (phase.what === 'trips') end.send(number);
    if (++number < phase.count) return;
    end.idle = true;
    if (phase.what === 'rate') end.control({ cpu: used(cpu) });
  };
}

// Side A's thread is blocked and would never see an error of this one: it ends both.
function guarded() {
  try {
    blocking(new Shared(config, workerData.memory, 1));
  } catch (error) {
    fs.writeSync(2, `${error.stack}\n`);
    process.kill(process.pid);
  }
}

function blocking(end) {
  for (;;) {
    const { what, size, count } = end.receiveControl();
    if (what === 'end') return;
    end.prepare(size);
    end.control({});
    for (let number = 0; number < count; number++) {
      end.receive(number);
      if (what === 'trips') end.send(number);
    }
    if (what === 'trips') end.receiveControl();
    end.control({ cpu: 0 }); // A thread of side A's process, which counts both.
  }
}

// A worker's CPU is its process's, which side A counts.
function used(since) {
  if (!isMainThread) return 0;
  const { user, system } = process.cpuUsage(since);
  return (user + system) / 1e6;
}
