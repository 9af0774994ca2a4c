'use strict';
// The editor: four chats with their tools, cancels, and answers to questions; as in editor/.

const net = require('node:net');
const { plan, stream, chatNumber, now, item, SequenceCheck, validate, recorder, report, send, receive, fragments, pause, whenInputCloses, ...kind } =
  require('./common.js');

const calls = new Map();
const began = performance.now();
let number = 0;
let over = false;
const live = { chunks: 0, tools: 0, calls: 0 };

const questions = new SequenceCheck(stream(kind.QUESTION, 0));
const socket = net.connect(plan.path);
socket.setMaxListeners(0); // Each send that waits for room adds one.
socket.on('error', fail);
socket.on('close', () => over || fail(new Error('the backend has disconnected')));
receive(socket, (message) => {
  if (message.push !== undefined) return question(message.push);
  const call = calls.get(message.id);
  if (call === undefined) return undefined; // It was cancelled.
  if (message.item !== undefined) return call.onitem(message.item);
  calls.delete(message.id);
  return message.end ? call.resolve(message) : call.reject(new Error(message.failed));
});

// A call; its chunks go to `onitem` as they come.
function begin(method, message, onitem) {
  const id = ++number;
  const end = new Promise((resolve, reject) => calls.set(id, { resolve, reject, onitem }));
  send(socket, { id, method, ...message });
  return { id, end };
}

function question({ item: it, micros }) {
  if (it.of === questions.of) questions.take(it, 181);
  else validate(it, it.of, 181);
  setTimeout(() => {
    const { of, seq } = it;
    begin('answer', { of, seq, item: item(of, seq, 60) }).end.then(() => recorder.count('questions answered'), fail);
  }, micros / 1000 - (now() - it.sent) / 1e6);
}

async function chats(thread) {
  for (let index = 0; index < plan.paced[thread].length; index++) await chat({ unpaced: false, thread, index });
  await pause(Math.max(0, plan.pacedMillis + 500 - (performance.now() - began)));
  const end = plan.pacedMillis + 500 + plan.unpacedMillis;
  for (let index = 0; performance.now() - began < end; index++) await chat({ unpaced: true, thread, index });
}

async function chat(which) {
  const names = which.unpaced ? ['FirstUnpaced', 'DeliveryUnpaced', 'GapUnpaced'] : ['First', 'Delivery', 'Gap'];
  const known = (which.unpaced ? plan.unpaced : plan.paced)[which.thread];
  const { request, chunks, tools } = known[which.index % known.length];
  const of = stream(kind.CHAT, chatNumber(which));
  const track = new SequenceCheck(of);
  let before;
  const asked = now();
  await begin('chat', { which, chunks: chunks.length, item: item(of, 0, request) }, (it) => {
    const arrived = now();
    const at = track.next;
    track.take(it, chunks[at]);
    recorder.time(names[1], Math.max(0, arrived - it.sent));
    if (before !== undefined) recorder.time(names[2], arrived - before);
    else if (at === 0) recorder.time(names[0], arrived - asked);
    before = arrived;
    live.chunks++;
    const index = tools.findIndex((tool) => tool.at === at);
    if (index < 0) return;
    before = undefined;
    tool(which, of, index, tools[index]).catch(fail); // The chat waits for its result.
  }).end;
  track.end(chunks.length);
  recorder.count('chats');
}

async function tool(which, chat, index, planned) {
  const of = stream(kind.TOOL, chatNumber(which) + index);
  const track = new SequenceCheck(of);
  const lengths = [...planned.progress, ...fragments(planned.result)];
  const asked = now();
  const request = { which, tool: index, item: item(of, 0, planned.arguments) };
  await begin('tool', request, (it) => track.take(it, lengths[track.next])).end;
  const took = now() - asked;
  track.end(lengths.length);
  if (planned.approval !== null) recorder.time('Approval', Math.max(0, took - planned.approval * 1000));
  else recorder.time(which.unpaced ? 'ToolUnpaced' : 'Tool', took);
  recorder.count(planned.approval === null ? 'tools' : 'tools with an approval');
  live.tools++;
  await begin('result', { chat, tool: index, item: item(of, 1, 20) }).end;
}

async function cancels() {
  for (let index = 0; !over; index++) {
    await pause(500);
    if (over) return;
    const of = stream(kind.FLOOD, index);
    const track = new SequenceCheck(of);
    const most = 20 + ((index * 37) % 181);
    await new Promise((resolve) => {
      const call = begin('flood', { item: item(of, 0, 20) }, (it) => {
        track.take(it, 81);
        if (track.next < most) return;
        calls.delete(call.id);
        resolve();
        send(socket, { id: call.id, method: 'cancel' });
      });
    });
    const cancelled = now();
    for (let ended = 0; ended === 0; ) {
      ({ ended } = await begin('floodEnd', { of, item: item(of, 1, 20) }).end);
      if (ended > 0) recorder.time('Cancel', Math.max(0, ended - cancelled));
      else await pause(1);
    }
    track.end(track.next);
  }
}

// Waits for the answers to all questions.
async function drain() {
  const deadline = performance.now() + 20000;
  for (let open = 1; open > 0; ) {
    ({ open } = await begin('stopQuestions', { item: item(stream(kind.CONTROL, 1), 0, 20) }).end);
    if (performance.now() > deadline) throw new Error('some questions have no answer');
    if (open > 0) await pause(20);
  }
  questions.end(questions.next);
}

function fail(error) {
  recorder.faults.push(String(error.stack ?? error));
  finish();
}

function finish() {
  over = true;
  recorder.reportMeasurements();
  process.exit(0);
}

async function runFlows() {
  const progress = setInterval(() => report({ Progress: { ...live, calls: number } }), 100);
  const all = cancels();
  await Promise.all([0, 1, 2, 3].map(chats));
  over = true;
  await all;
  await drain();
  clearInterval(progress);
  finish();
}

whenInputCloses(() => process.exit(3));
socket.once('connect', () => runFlows().catch(fail));
