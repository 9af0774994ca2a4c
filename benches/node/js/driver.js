'use strict';
// Side A: starts side B, drives the phases that the configuration lists, times them, and prints one line of JSON.
//
//   trips   send, wait for the reply, verify it, `count` times; one look at the clock for each
//   rate    `count` messages one behind the other; the time ends when side B reports that it has verified all
//
// Side B reports before a phase that it is ready, and after it, for the trips once asked, its CPU time: neither is timed.

const { fork, spawn } = require('node:child_process');
const net = require('node:net');
const path = require('node:path');
const { Worker } = require('node:worker_threads');
const { Objects } = require('./message.js');
const { ipc, port } = require('./channel.js');
const { Framed } = require('./socket.js');
const { Shared, allocate } = require('./shared.js');

const config = JSON.parse(process.argv[2]);
const ECHO = path.join(__dirname, 'echo.js');

async function main() {
  const results = [];
  if (config.system === 'alone-node') {
    for (const phase of config.phases) results.push(alone(phase));
    finish(results);
  } else if (config.system.startsWith('shared')) {
    const memory = allocate(config.largest);
    const end = new Shared(config, memory, 0);
    const worker = new Worker(ECHO, { workerData: { config, memory } });
    await new Promise((online) => worker.once('online', online));
    for (const phase of config.phases) results.push(blocking(end, phase));
    finish(results, () => end.control({ what: 'end' }));
  } else {
    const [end, stop] = await start();
    for (const phase of config.phases) results.push(await calledBack(end, phase));
    finish(results, stop);
  }
}

// Starts side B, and connects with it.
async function start() {
  if (config.system === 'worker') {
    const worker = new Worker(ECHO, { workerData: { config } });
    return [port(config, worker), () => worker.terminate()];
  }
  const given = JSON.stringify(config);
  const [program, ...before] = [...config.pin_b, config.node];
  if (config.system.startsWith('ipc')) {
    const serialization = config.system === 'ipc-json' ? 'json' : 'advanced';
    const child = fork(ECHO, [given], { execPath: program, execArgv: before, serialization });
    child.on('exit', lost);
    return [ipc(config, child), () => child.removeListener('exit', lost).disconnect()];
  }
  const rust = config.system === 'socket-rust';
  const [command, ...words] = rust ? [...config.pin_b, config.rust, 'echo', given] : [program, ...before, ECHO, given];
  const server = net.createServer();
  const connected = new Promise((accept) => server.once('connection', accept));
  await new Promise((listening) => server.listen(path.join(config.folder, 'socket'), listening));
  const child = spawn(command, words, { stdio: 'inherit' }).on('exit', lost);
  const socket = await connected;
  server.close();
  const end = new Framed(config, socket);
  socket.on('data', (chunk) => end.feed(chunk));
  return [end, () => (child.removeListener('exit', lost), socket.end())];
}

function lost(code) {
  console.error(`side B ended before its time: ${code}`);
  process.exit(1);
}

// One phase of a transport that calls back.
async function calledBack(end, { what, size, count }) {
  end.prepare(size);
  const nextControl = () => {
    end.idle = true;
    return new Promise((resolve) => (end.onmessage = resolve));
  };
  const ready = nextControl();
  end.control({ what, size, count });
  await ready;
  const took = what === 'trips' ? new Float64Array(count) : undefined;
  const clock = new Clock();
  if (took !== undefined) {
    await trips(end, took);
    clock.stop();
  }
  const report = nextControl();
  if (took !== undefined) end.control({});
  else end.sendMany(count);
  const { cpu } = await report;
  if (took === undefined) clock.stop();
  return clock.result({ what, size, count }, took, cpu);
}

function trips(end, took) {
  return new Promise((done) => {
    let number = 0;
    let last = performance.now();
    end.idle = false;
    end.onmessage = (reply) => {
      end.check(reply, number);
      const now = performance.now();
      took[number++] = now - last;
      last = now;
      if (number < took.length) end.send(number);
      else done();
    };
    end.send(0);
  });
}

// One phase of a transport that blocks.
function blocking(end, { what, size, count }) {
  end.prepare(size);
  end.control({ what, size, count });
  end.receiveControl();
  const took = what === 'trips' ? new Float64Array(count) : undefined;
  const clock = new Clock();
  let last = performance.now();
  for (let number = 0; number < count; number++) {
    end.send(number);
    if (took === undefined) continue;
    end.receive(number);
    const now = performance.now();
    took[number] = now - last;
    last = now;
  }
  if (took !== undefined) {
    clock.stop();
    end.control({});
  }
  const { cpu } = end.receiveControl();
  if (took === undefined) clock.stop();
  return clock.result({ what, size, count }, took, cpu);
}

// The cost of serialising, parsing and verifying when nothing is sent. A round trip is both, twice; the rate is that of the slower of
// making and checking, since two processes do both at once.
function alone({ what, size, count }) {
  const work = new Objects(config.folder, size);
  const trips = what === 'trips';
  const took = new Float64Array(count);
  const clock = new Clock();
  let making = 0;
  for (let number = 0; number < count; number++) {
    const start = performance.now();
    const text = Buffer.from(JSON.stringify(work.make(number)));
    making += performance.now() - start;
    work.check(JSON.parse(text), number);
    if (trips) work.check(JSON.parse(Buffer.from(JSON.stringify(work.make(number)))), number);
    took[number] = performance.now() - start;
  }
  clock.stop();
  if (!trips) clock.seconds = Math.max(making / 1e3, clock.seconds - making / 1e3);
  return clock.result({ what, size, count }, trips ? took : undefined, 0);
}

// Wall and CPU time of a phase.
class Clock {
  constructor() {
    this.cpu = process.cpuUsage();
    this.from = performance.now();
  }

  stop() {
    this.seconds = (performance.now() - this.from) / 1e3;
    const { user, system } = process.cpuUsage(this.cpu);
    this.used = (user + system) / 1e6;
  }

  result(phase, took, cpu_b) {
    const sorted = took === undefined ? new Float64Array() : took.sort();
    const at = (point) => sorted[Math.min(sorted.length - 1, Math.floor(point * sorted.length))] * 1e3;
    const quantiles = sorted.length === 0 ? [] : config.points.map(at);
    return { ...phase, seconds: this.seconds, cpu_a: this.used, cpu_b, quantiles };
  }
}

function finish(results, stop) {
  process.stdout.write(`${JSON.stringify(results)}\n`, stop);
}

main();
